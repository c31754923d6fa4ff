//! `touch`

use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::{Change, New, NewKind, Time};

use super::Act;
use super::editing::Editing;
use crate::fault::Outcome;

/// Make empty files, or give files the time of now
#[derive(Args, Debug)]
pub(crate) struct Touch {
    /// Files inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Make no files
    #[arg(short = 'c', long)]
    no_create: bool,
    /// This time instead of now: 2024-02-29, 2024-02-29T12:00:00Z, @SECONDS
    #[arg(short = 'd', long, value_name = "TIME", value_parser = time)]
    date: Option<Time>,
    /// The time of the last access only
    #[arg(short = 'a')]
    access: bool,
    /// The time of the last change only
    #[arg(short = 'm')]
    modification: bool,
    /// A symbolic link itself, not what it leads to
    #[arg(long)]
    no_dereference: bool,
}

/// A time as people write it.
fn time(text: &str) -> Result<Time, String> {
    if let Some(seconds) = text.strip_prefix('@') {
        let sec = seconds.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
        return Ok(Time { sec, nsec: 0 });
    }
    let stamp = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let civil = text.parse::<jiff::civil::DateTime>().ok()?;
        civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    });
    let stamp =
        stamp.ok_or_else(|| format!("{text:?} is no time: 2024-02-29T12:00:00Z and @1700000000 are"))?;
    let nanos = stamp.as_nanosecond();
    let sec = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
    Ok(Time { sec, nsec: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0) })
}

impl Act for Touch {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        for path in &self.paths {
            let entry = editing.entry(path)?;
            let time = self.date.unwrap_or(editing.now);
            let (volume, node) = match &entry.0.found {
                Some(_) => {
                    let place = editing.place(path, !self.no_dereference)?;
                    (place.volume, place.node)
                }
                None if self.no_create => continue,
                None => {
                    let new = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
                    (entry.0.dir.volume, editing.create(path, &entry, &new)?)
                }
            };
            let both = self.access == self.modification;
            let change = Change {
                atime: (both || self.access).then_some(time),
                mtime: (both || self.modification).then_some(time),
                ..Change::default()
            };
            editing.change(path, volume, |writer, now| writer.set_attributes(node, &change, now))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_write_them() {
        let at = |text| time(text).unwrap();
        assert_eq!(at("@-5"), Time { sec: -5, nsec: 0 });
        assert_eq!(at("2024-02-29"), Time { sec: 1_709_164_800, nsec: 0 });
        assert_eq!(at("2024-02-29T12:00:00.5Z"), Time { sec: 1_709_208_000, nsec: 500_000_000 });
        assert_eq!(at("2024-02-29 12:00:00"), Time { sec: 1_709_208_000, nsec: 0 });
        assert!(time("yesterday").is_err());
    }
}
