//! Options of a format: declared as data, parsed once, at the edge.

use std::collections::BTreeMap;

use crate::error::{Fault, Kind, Result};

/// One option that a format understands, under `qemu-img`'s name where it has one.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// What users type before the `=`.
    pub name: &'static str,
    /// One sentence for the list of formats.
    pub help: &'static str,
    /// What may stand behind the `=`.
    pub kind: OptKind,
}

/// What an option's value may be.
#[derive(Clone, Copy, Debug)]
pub enum OptKind {
    /// A size in bytes with the suffixes k, M, G, T.
    Size {
        /// Smallest value in bytes.
        min: u64,
        /// Largest value in bytes.
        max: u64,
        /// Only powers of two.
        power_of_two: bool,
    },
    /// `on` or `off`.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
}

/// Values that were checked against their declarations.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<&'static str, Value>);

#[derive(Clone, Debug)]
enum Value {
    Size(u64),
    Flag(bool),
    Text(String),
}

/// What is wrong with an option.
#[derive(Debug, thiserror::Error)]
pub enum OptFault {
    /// Not declared.
    #[error("{by} has no option {name:?}")]
    Unknown {
        /// What was typed.
        name: String,
        /// The format.
        by: String,
    },
    /// Declared, but the value does not fit.
    #[error("{value:?} is no value for {name}: {expected}")]
    Value {
        /// The option.
        name: &'static str,
        /// What was typed.
        value: String,
        /// What would do.
        expected: String,
    },
}

impl Fault for OptFault {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
}

impl Values {
    /// Checks `name=value` pairs against what `by` declares.
    pub fn parse<'a>(
        by: &str,
        declared: &'static [Opt],
        typed: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self> {
        let mut values = Self::default();
        for (name, text) in typed {
            let Some(opt) = declared.iter().find(|o| o.name == name) else {
                return Err(OptFault::Unknown { name: name.into(), by: by.into() }.into());
            };
            values.0.insert(opt.name, opt.value(text)?);
        }
        Ok(values)
    }

    /// Sets a size, as a program rather than a person does.
    #[must_use]
    pub fn with_size(mut self, name: &'static str, bytes: u64) -> Self {
        self.0.insert(name, Value::Size(bytes));
        self
    }

    /// Sets a flag, as a program rather than a person does.
    #[must_use]
    pub fn with_flag(mut self, name: &'static str, on: bool) -> Self {
        self.0.insert(name, Value::Flag(on));
        self
    }

    /// Sets a text or choice, as a program rather than a person does.
    #[must_use]
    pub fn with_text(mut self, name: &'static str, text: &str) -> Self {
        self.0.insert(name, Value::Text(text.into()));
        self
    }

    /// A size in bytes, if given.
    pub fn size(&self, name: &str) -> Option<u64> {
        match self.0.get(name) {
            Some(Value::Size(n)) => Some(*n),
            _ => None,
        }
    }

    /// A flag, if given.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.0.get(name) {
            Some(Value::Flag(b)) => Some(*b),
            _ => None,
        }
    }

    /// A text or choice, if given.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Value::Text(t)) => Some(t),
            _ => None,
        }
    }
}

impl Opt {
    fn value(&self, text: &str) -> Result<Value> {
        let wrong = |expected: String| OptFault::Value { name: self.name, value: text.into(), expected };
        match self.kind {
            OptKind::Text => Ok(Value::Text(text.into())),
            OptKind::Flag => match text {
                "on" | "yes" | "true" => Ok(Value::Flag(true)),
                "off" | "no" | "false" => Ok(Value::Flag(false)),
                _ => Err(wrong("on or off".into()).into()),
            },
            OptKind::Choice(words) => {
                if words.contains(&text) {
                    Ok(Value::Text(text.into()))
                } else {
                    Err(wrong(format!("one of {}", words.join(", "))).into())
                }
            }
            OptKind::Size { min, max, power_of_two } => {
                let n = parse_size(text).ok_or_else(|| wrong("a size such as 64k or 1M".into()))?;
                if n < min || n > max || (power_of_two && !n.is_power_of_two()) {
                    let shape = if power_of_two { "a power of two " } else { "" };
                    return Err(wrong(format!("{shape}from {min} to {max} bytes")).into());
                }
                Ok(Value::Size(n))
            }
        }
    }
}

/// A size as `qemu-img` reads it: a hexadecimal number, or one with an optional suffix b, k, M, G, T, P, E (powers of
/// 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        // A sign is no digit, but would be read.
        return u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" | "b" => 0u32,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        "e" | "eb" | "eib" => 60,
        _ => return None,
    };
    let unit = 1u64.checked_shl(shift)?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut bytes = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if !fraction.is_empty() {
        // "1.5G": at most nine digits keep the product inside 128 bits.
        let digits = u32::try_from(fraction.len()).ok().filter(|n| *n <= 9)?;
        let part = u128::from(fraction.parse::<u64>().ok()?).checked_mul(u128::from(unit))?;
        let part = part.checked_div(10u128.checked_pow(digits)?)?;
        bytes = bytes.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(parse_size("64k"), Some(65536));
        assert_eq!(parse_size("1.5G"), Some(1_610_612_736));
        assert_eq!(parse_size("17"), Some(17));
        assert_eq!((parse_size("0x10000"), parse_size("0x"), parse_size("0x+1")), (Some(65536), None, None));
        assert_eq!(parse_size("1X"), None);
        assert_eq!(parse_size("99999999999E"), None);
    }
}
