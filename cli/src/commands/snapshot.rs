//! `racker disk snapshot`

use clap::Args;
use racker_formats::registry::{Moment, Snapshot, Snapshots};
use racker_fs::filesystem::Time;
use serde_json::{Value, json};

use crate::clean::clean;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{self, OutputArgs, human, line};
use crate::remote::open;
use crate::target::ImageArgs;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// List the snapshots inside an image, make one, go back to one, delete one
///
/// A snapshot is named by its name or by its number. Each change lands whole or not at all.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk snapshot -c before boot.qcow2\n  \
    racker disk snapshot boot.qcow2\n  racker disk snapshot -a before boot.qcow2\n  \
    racker disk snapshot -d before boot.qcow2")]
pub(crate) struct SnapshotCommand {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    output: OutputArgs,
}

/// One of four things to do.
#[derive(Args, Debug)]
#[group(multiple = false)]
struct What {
    /// List the snapshots: what is done if nothing else is asked for
    #[arg(short = 'l', long)]
    list: bool,
    /// Keep the disk as it is now under this name
    #[arg(short = 'c', long, value_name = "NAME")]
    create: Option<String>,
    /// Turn the disk back to this snapshot; what it holds now is lost
    #[arg(short = 'a', long, value_name = "SNAPSHOT")]
    apply: Option<String>,
    /// Delete this snapshot
    #[arg(short = 'd', long, value_name = "SNAPSHOT")]
    delete: Option<String>,
}

impl SnapshotCommand {
    pub(super) fn run(self) -> Outcome<Exit> {
        let path = &self.image.image;
        let What { create, apply, delete, .. } = &self.what;
        let write = create.is_some() || apply.is_some() || delete.is_some();
        let opened = open(path, &self.image.how.options(write)).about(path)?;
        let history = |what| -> Outcome<&dyn Snapshots> {
            let none = || Failure::new(format!("{what}: {} images hold no snapshots", opened.format));
            opened.image.snapshots().ok_or_else(none).about(path)
        };
        if let Some(name) = create {
            history("making a snapshot")?.create(name, Moment::now()).about(path)?;
        } else if let Some(which) = apply {
            history("going back to a snapshot")?.apply(which).about(path)?;
        } else if let Some(which) = delete {
            history("deleting a snapshot")?.delete(which).about(path)?;
        } else {
            let all = opened.image.facts().snapshots;
            if self.output.is_json() {
                output::json(&all.iter().map(object).collect::<Vec<_>>())?;
            } else {
                table(&all)?;
            }
        }
        Ok(Exit::Done)
    }
}

/// A snapshot as `qemu-img info` shows it.
pub(super) fn object(s: &Snapshot) -> Value {
    let mut all = json!({
        "id": s.id,
        "name": s.name,
        "vm-state-size": s.vm_state_size,
        "date-sec": s.date_sec,
        "date-nsec": s.date_nsec,
        "vm-clock-sec": s.vm_clock_nsec / SECOND,
        "vm-clock-nsec": s.vm_clock_nsec % SECOND,
        "virtual-size": s.virtual_size,
    });
    if let (Some(count), Some(all)) = (s.icount, all.as_object_mut()) {
        all.insert("icount".into(), count.into());
    }
    all
}

/// The columns of `qemu-img snapshot -l`; times are UTC.
fn table(all: &[Snapshot]) -> Outcome<()> {
    if all.is_empty() {
        return Ok(());
    }
    line("Snapshot list:")?;
    let row = |id: &str, name: &str, size: &str, date: &str, clock: &str, count: &str| {
        line(&format!("{id:<8}{name:<16} {size:>8} {date:>20} {clock:>15} {count:>10}"))
    };
    row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")?;
    for s in all {
        let time = Time { sec: i64::try_from(s.date_sec).unwrap_or(i64::MAX), nsec: 0 };
        let count = s.icount.map_or_else(|| "--".into(), |n| n.to_string());
        let (date, clock) = (output::second(time), clock(s.vm_clock_nsec));
        row(&clean(&s.id), &clean(&s.name), &human(s.vm_state_size), &date, &clock, &count)?;
    }
    Ok(())
}

/// Hours, minutes, seconds and thousandths.
fn clock(nsec: u64) -> String {
    let sec = nsec / SECOND;
    let (hours, minutes, milli) = (sec / 3600, sec / 60 % 60, nsec / 1_000_000 % 1000);
    format!("{hours:04}:{minutes:02}:{:02}.{milli:03}", sec % 60)
}
