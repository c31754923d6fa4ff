//! Modes as `chmod` takes them: numbers, and letters.

/// What a mode becomes.
#[derive(Clone, Debug)]
pub(super) enum ModeChange {
    /// These bits.
    Octal(u32),
    /// One step after the other.
    Steps(Vec<Step>),
}

/// One step: `g-w`, `a+X`, `u=rwx`, `o=u`.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The bits of those whom it is about: 0o700, 0o070, 0o007 and the special bits.
    who: u32,
    operator: char,
    letters: String,
}

impl ModeChange {
    /// What was typed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no mode: 0644 and u=rw,go=r are");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).ok().filter(|b| *b <= 0o7777);
            return bits.map(Self::Octal).ok_or_else(wrong);
        }
        let mut steps = Vec::new();
        for clause in text.split(',') {
            let start = clause.find(['+', '-', '=']).ok_or_else(wrong)?;
            let (people, mut rest) = clause.split_at(start);
            let who = people.chars().try_fold(0u32, |who, c| {
                Some(
                    who | match c {
                        'u' => 0o4700,
                        'g' => 0o2070,
                        'o' => 0o1007,
                        'a' => 0o7777,
                        _ => return None,
                    },
                )
            });
            let who = who.map(|w| if w == 0 { 0o7777 } else { w }).ok_or_else(wrong)?;
            while let Some(operator) = rest.chars().next() {
                let behind = rest.get(1..).unwrap_or_default();
                let end = behind.find(['+', '-', '=']).unwrap_or(behind.len());
                let (letters, next) = behind.split_at(end);
                if !letters.chars().all(|c| "rwxXstugo".contains(c)) {
                    return Err(wrong());
                }
                steps.push(Step { who, operator, letters: letters.to_string() });
                rest = next;
            }
        }
        Ok(Self::Steps(steps))
    }

    /// The mode of a node that had `mode`.
    pub(super) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            // As chmod does: digits leave the special bits of a directory unless they name them.
            Self::Octal(bits) => *bits,
            Self::Steps(steps) => steps.iter().fold(mode, |mode, step| step.apply(mode, is_dir)),
        }
    }
}

impl Step {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let copies = |shift: u32| {
            let bits = mode >> shift & 7;
            bits << 6 | bits << 3 | bits
        };
        let bits = self.letters.chars().fold(0u32, |bits, c| {
            bits | match c {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                's' => 0o6000,
                't' => 0o1000,
                'u' => copies(6),
                'g' => copies(3),
                'o' => copies(0),
                _ => 0,
            }
        });
        let bits = bits & self.who;
        match self.operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            // Special bits of directories stay, as with chmod.
            _ => mode & !(self.who & if is_dir { 0o777 } else { 0o7777 }) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_mean_what_they_mean_to_chmod() {
        for (text, mode, is_dir, want) in [
            ("0750", 0o644, false, 0o750),
            ("u+x", 0o644, false, 0o744),
            ("go-rwx", 0o755, false, 0o700),
            ("a=r", 0o4755, false, 0o444),
            ("u=rwx,go=u-w", 0o600, false, 0o755),
            ("a+X", 0o600, false, 0o600),
            ("a+X", 0o700, false, 0o711),
            ("+X", 0o600, true, 0o711),
            ("u+s,+t", 0o755, false, 0o5755),
            ("g=rx", 0o2775, true, 0o2755),
        ] {
            assert_eq!(ModeChange::parse(text).unwrap().apply(mode, is_dir), want, "{text}");
        }
        assert!(ModeChange::parse("0999").is_err() && ModeChange::parse("u+q").is_err());
        assert!(ModeChange::parse("rw").is_err() && ModeChange::parse("77777").is_err());
    }
}
