//! `racker disk part IMAGE ls`

use clap::Args;
use racker_formats::block::Span;
use racker_fs::partition::edit::TableEdit;
use racker_fs::partition::{Partition, Table};
use serde_json::{Map, Value, json};

use super::change::attribute_name;
use crate::clean::clean;
use crate::fault::Outcome;
use crate::output::{self, OutputArgs, human, line};
use crate::target::Target;

/// Show the partition table: number, start, size, type, name, flags and identifier of each partition, and the gaps
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk part boot.qcow2 ls --json")]
pub(super) struct Ls {
    #[command(flatten)]
    output: OutputArgs,
}

impl Ls {
    pub(super) fn look(&self, target: &Target) -> Outcome<()> {
        let table = &target.inspection.table;
        let gaps = TableEdit::open(target.disk()).map(|edit| edit.gaps()).unwrap_or_default();
        if self.output.is_json() {
            return output::json(&object(target, table, &gaps));
        }
        text(target, table, &gaps)
    }
}

fn object(target: &Target, table: &Table, gaps: &[Span]) -> Value {
    let gap = |gap: &Span| json!({ "start": gap.start(), "size": gap.len() });
    let mut out = Map::new();
    out.insert("filename".into(), target.path.display().to_string().into());
    out.insert("virtual-size".into(), target.disk().size().into());
    out.insert("type".into(), table.scheme.into());
    out.insert("sector-size".into(), table.sector_size.into());
    out.insert("id".into(), table.id.clone().into());
    if !table.warnings.is_empty() {
        out.insert("warnings".into(), table.warnings.clone().into());
    }
    out.insert("partitions".into(), table.partitions.iter().map(partition).collect());
    out.insert("gaps".into(), gaps.iter().map(gap).collect());
    out.retain(|_, value| !value.is_null());
    Value::Object(out)
}

/// A partition as JSON: the names are those of `info`.
pub(super) fn partition(p: &Partition) -> Value {
    let mut out = Map::new();
    out.insert("partition".into(), p.number.into());
    out.insert("start".into(), p.span.start().into());
    out.insert("size".into(), p.span.len().into());
    out.insert("type".into(), p.type_id.clone().into());
    out.insert("type-name".into(), p.type_name.into());
    out.insert("partition-label".into(), p.label.clone().into());
    out.insert("partuuid".into(), p.id.clone().into());
    out.insert("bootable".into(), p.bootable.then_some(true).into());
    out.insert("extended".into(), p.container.then_some(true).into());
    if p.attributes != 0 {
        out.insert("attributes".into(), flags(p).into());
    }
    out.retain(|_, value| !value.is_null());
    Value::Object(out)
}

/// The attribute bits by name, or by number where they have none.
fn flags(p: &Partition) -> Vec<String> {
    let set = (0u8..64).filter(|bit| p.attributes.checked_shr(u32::from(*bit)).unwrap_or(0) & 1 == 1);
    set.map(attribute_name).collect()
}

/// A partition in one line: `2: 1 GiB at 257 MiB, Linux filesystem`.
pub(super) fn sentence(p: &Partition) -> String {
    let kind = p.type_name.map_or_else(|| p.type_id.clone(), String::from);
    let label = p.label.as_ref().map(|l| format!(", name {}", clean(l))).unwrap_or_default();
    format!("{}: {} at {}, {kind}{label}", p.number, human(p.span.len()), human(p.span.start()))
}

fn text(target: &Target, table: &Table, gaps: &[Span]) -> Outcome<()> {
    let size = target.disk().size();
    line(&format!("disk: {} ({size} bytes)", human(size)))?;
    let id = table.id.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
    line(&format!("partition table: {}{id}, sectors of {} bytes", table.scheme, table.sector_size))?;
    for warning in &table.warnings {
        line(&format!("warning: {}", clean(warning)))?;
    }
    if table.scheme == "none" {
        return Ok(());
    }
    let row = |p: &Partition| {
        let mut flags = flags(p);
        if p.bootable && p.attributes == 0 {
            flags.push("active".into());
        }
        [
            p.number.to_string(),
            p.span.start().to_string(),
            p.span.len().to_string(),
            human(p.span.len()),
            p.type_name.map_or_else(|| p.type_id.clone(), String::from),
            p.label.as_deref().map(clean).unwrap_or_default(),
            flags.join(","),
            p.id.clone().unwrap_or_default(),
        ]
    };
    let head = ["NR", "START", "BYTES", "SIZE", "TYPE", "NAME", "FLAGS", "PARTUUID"].map(String::from);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(table.partitions.iter().map(row)).collect();
    let mut widths = [0usize; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate().map(|(i, (cell, width))| match i {
            0..=3 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    for gap in gaps {
        line(&format!("gap: {} at byte {} ({} bytes)", human(gap.len()), gap.start(), gap.len()))?;
    }
    Ok(())
}
