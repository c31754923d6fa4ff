//! What commands print: sizes, times, modes; and JSON.

use std::io::Write;

use clap::{Args, ValueEnum};
use racker_formats::options::parse_size;
use racker_fs::filesystem::{NodeKind, Stat, Time};
use serde::Serialize;

use crate::fault::Outcome;

/// How a report is printed.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// Print JSON, with `qemu-img`'s names where it has the field
    #[arg(long)]
    json: bool,
    /// The same as `qemu-img` spells it
    #[arg(long, value_enum, default_value = "human", value_name = "AS")]
    output: OutputAs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputAs {
    Human,
    Json,
}

impl OutputArgs {
    /// Whether JSON is asked for.
    pub(crate) fn is_json(self) -> bool {
        self.json || self.output == OutputAs::Json
    }
}

/// A size on the command line.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "a size such as 64k or 1M is expected".into())
}

/// A JSON array whose items are printed as they come, one a line: there may be millions. Nothing is printed before the
/// first one.
#[derive(Debug)]
pub(crate) struct Stream {
    out: std::io::BufWriter<std::io::Stdout>,
    is_empty: bool,
}

impl Stream {
    /// An array without items.
    pub(crate) fn new() -> Self {
        Self { out: std::io::BufWriter::new(std::io::stdout()), is_empty: true }
    }

    /// Prints one item.
    pub(crate) fn put(&mut self, item: &impl Serialize) -> std::io::Result<()> {
        self.out.write_all(if std::mem::replace(&mut self.is_empty, false) { b"[" } else { b",\n" })?;
        Ok(serde_json::to_writer(&mut self.out, item)?)
    }

    /// Ends the array.
    pub(crate) fn end(mut self) -> std::io::Result<()> {
        self.out.write_all(if self.is_empty { b"[]\n" } else { b"]\n" })?;
        self.out.flush()
    }
}

/// Prints a value as JSON, indented as `qemu-img` does.
pub(crate) fn json(value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    line(&text)
}

/// Prints one line; a closed pipe comes back as an error that ends the command quietly.
pub(crate) fn line(text: &str) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}

/// A size for people: `1.5 GiB`.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0usize;
    let mut scaled = u128::from(bytes);
    // Tenths of a unit, rounded down: 1023.9 MiB never reads as 1024.0 MiB.
    while scaled >= 1024 * 1024 && unit < units.len().saturating_sub(1) {
        scaled /= 1024;
        unit = unit.saturating_add(1);
    }
    let tenths = scaled.saturating_mul(10) / 1024;
    let name = units.get(unit).copied().unwrap_or_default();
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        n => format!("{}.{n} {name}", tenths / 10),
    }
}

/// A time in UTC, as `ls --time-style=long-iso` prints it; numbers that no calendar has are printed as numbers.
pub(crate) fn minute(time: Time) -> String {
    stamp(time).map_or_else(|| time.sec.to_string(), |t| t.strftime("%Y-%m-%d %H:%M").to_string())
}

/// A time in UTC to the second.
pub(crate) fn second(time: Time) -> String {
    stamp(time).map_or_else(|| time.sec.to_string(), |t| t.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// A time in UTC to the nanosecond.
pub(crate) fn exact(time: Time) -> String {
    stamp(time)
        .map_or_else(|| time.sec.to_string(), |t| t.strftime("%Y-%m-%d %H:%M:%S.%9f +0000").to_string())
}

fn stamp(time: Time) -> Option<jiff::Timestamp> {
    let whole = jiff::Timestamp::new(time.sec, 0).ok()?;
    whole.checked_add(jiff::SignedDuration::from_nanos(i64::from(time.nsec))).ok()
}

/// `drwxr-xr-x`
pub(crate) fn mode(stat: &Stat) -> String {
    let kind = match stat.kind {
        NodeKind::File => '-',
        NodeKind::Dir => 'd',
        NodeKind::Link => 'l',
        NodeKind::Char => 'c',
        NodeKind::Block => 'b',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
    };
    let bit = |n: u32, c: char| if stat.mode & n != 0 { c } else { '-' };
    let exec = |x: u32, special: u32, c: char| match (stat.mode & x != 0, stat.mode & special != 0) {
        (true, true) => c,
        (false, true) => c.to_ascii_uppercase(),
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        exec(0o100, 0o4000, 's'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        exec(0o010, 0o2000, 's'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        exec(0o001, 0o1000, 't'),
    ]
    .iter()
    .collect()
}

/// What `stat -c %F` calls a kind.
pub(crate) fn kind(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "regular file",
        NodeKind::Dir => "directory",
        NodeKind::Link => "symbolic link",
        NodeKind::Char => "character special file",
        NodeKind::Block => "block special file",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        assert_eq!(human(512), "512 B");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(16_106_127_360), "15 GiB");
        assert_eq!(human((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(human(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn times_before_the_epoch() {
        assert_eq!(exact(Time { sec: -1, nsec: 5 }), "1969-12-31 23:59:59.000000005 +0000");
        assert_eq!(minute(Time { sec: i64::MAX, nsec: 0 }), i64::MAX.to_string());
    }
}
