//! `racker disk info`

use clap::Args;
use racker_formats::opening::Reference;
use racker_fs::boot::Entry;
use racker_fs::guest::{Guest, boot_entries};
use racker_fs::inspect::Volume;
use serde_json::{Map, Value, json};

use crate::clean::clean;
use crate::exit::Exit;
use crate::fault::Outcome;
use crate::output::{self, OutputArgs, human, line};
use crate::remote::is_remote;
use crate::target::{ImageArgs, Target};

/// Show what an image is and what is on it: format, sizes, backing chain, snapshots, partitions, filesystems,
/// operating system, boot entries
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk info boot.qcow2")]
pub(crate) struct Info {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl Info {
    pub(super) fn run(self) -> Outcome<Exit> {
        let target = Target::open(&self.image)?;
        let view = view(&target);
        if self.output.is_json() {
            output::json(&view)?;
        } else {
            text(&view)?;
        }
        Ok(Exit::Done)
    }
}

/// One view for both outputs.
fn view(target: &Target) -> Value {
    let facts = target.opened.image.facts();
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            out.insert(name.into(), value);
        }
    };
    put("filename", target.path.display().to_string().into());
    put("format", facts.format.into());
    put("virtual-size", facts.virtual_size.into());
    put("actual-size", actual_size(target).into());
    put("cluster-size", facts.cluster_size.into());
    put("subformat", facts.subformat.clone().into());
    put("layers", target.opened.layers.iter().map(|l| json!({ "name": l.name, "kinds": l.kinds })).collect());
    put("dirty-flag", facts.dirty.into());
    put("corrupt", facts.corrupt.then_some(true).into());
    put("encrypted", facts.encrypted.then_some(true).into());
    if let Some(Reference { path, format, .. }) = &facts.backing {
        put("backing-filename", path.clone().into());
        put("backing-filename-format", format.clone().into());
    }
    if !facts.data_files.is_empty() {
        put("data-files", facts.data_files.clone().into());
    }
    if !facts.snapshots.is_empty() {
        put("snapshots", facts.snapshots.iter().map(super::snapshot::object).collect());
    }
    if !facts.specific.is_empty() {
        put("format-specific", json!({ "type": facts.format, "data": facts.specific }));
    }
    let table = &target.inspection.table;
    put("partition-table", json!({ "type": table.scheme, "sector-size": table.sector_size, "id": table.id }));
    if !table.warnings.is_empty() {
        put("warnings", table.warnings.clone().into());
    }
    put("volumes", target.inspection.volumes.iter().map(volume).collect());
    let guest = Guest::find(&target.inspection);
    if let Some(guest) = &guest {
        let mounts: Map<String, Value> = guest
            .view
            .mounts()
            .iter()
            .map(|m| {
                let name = target.inspection.volumes.get(m.volume).map(Volume::place);
                (racker_fs::path::show(&m.at), name.into())
            })
            .collect();
        put(
            "operating-system",
            json!({ "name": guest.name, "id": guest.id, "version": guest.version,
                    "ostree-deployment": guest.deployment, "mounts": mounts }),
        );
    }
    let entries = boot_entries(&target.inspection);
    if !entries.is_empty() {
        let all = entries.iter().map(|(index, e)| entry(target, *index, e));
        put("boot-entries", all.collect());
    }
    Value::Object(out)
}

/// Bytes that the image's file takes on the host; on another machine nobody says.
fn actual_size(target: &Target) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    if is_remote(&target.path) {
        return None;
    }
    Some(std::fs::metadata(&target.path).map_or(0, |m| m.blocks().saturating_mul(512)))
}

fn volume(volume: &Volume) -> Value {
    let mut out = Map::new();
    if let Some(p) = &volume.partition {
        out.insert("partition".into(), p.number.into());
        out.insert("start".into(), p.span.start().into());
        out.insert("type".into(), p.type_id.clone().into());
        if let Some(name) = p.type_name {
            out.insert("type-name".into(), name.into());
        }
        if let Some(label) = &p.label {
            out.insert("partition-label".into(), label.clone().into());
        }
        if let Some(id) = &p.id {
            out.insert("partuuid".into(), id.clone().into());
        }
        if p.bootable {
            out.insert("bootable".into(), true.into());
        }
    }
    out.insert("logical-volume".into(), volume.logical.clone().into());
    out.insert("size".into(), volume.disk.size().into());
    if let Some(driver) = volume.driver() {
        out.insert("filesystem".into(), driver.name().into());
    }
    if let Ok(Some(found)) = volume.recognised() {
        match volume.driver() {
            // The filesystem's own name follows.
            Some(_) => {
                let text = format!("{}: a copy of others, which racker does not change alone", found.name);
                out.insert("member".into(), text.into())
            }
            None => {
                out.insert("label".into(), found.label.into());
                out.insert("uuid".into(), found.uuid.into());
                out.insert("filesystem".into(), found.name.into())
            }
        };
    }
    match volume.driver().map(|_| volume.filesystem().and_then(|fs| fs.facts())) {
        Some(Ok(facts)) => {
            out.insert("filesystem".into(), facts.kind.into());
            out.insert("label".into(), facts.label.into());
            out.insert("uuid".into(), facts.uuid.into());
            out.insert("block-size".into(), facts.block_size.into());
            out.insert("filesystem-size".into(), facts.size.into());
            out.insert("free".into(), facts.free.into());
            out.insert("features".into(), facts.features.into());
            if facts.replayed {
                out.insert("log".into(), "not empty: replayed in memory".into());
            }
            if let Some(why) = facts.read_only {
                out.insert("read-only".into(), why.into());
            }
        }
        Some(Err(e)) => {
            out.insert("error".into(), e.to_string().into());
        }
        None => {}
    }
    out.retain(|_, v| !v.is_null());
    Value::Object(out)
}

fn entry(target: &Target, index: usize, e: &Entry) -> Value {
    let volume = target.inspection.volumes.get(index).map(Volume::name);
    json!({ "id": e.id, "volume": volume, "title": e.title, "version": e.version, "linux": e.linux,
            "initrd": e.initrd, "options": e.options })
}

fn text(view: &Value) -> Outcome<()> {
    let field = |name: &str| view.get(name).filter(|v| !v.is_null());
    let string = |name: &str| field(name).and_then(Value::as_str).map(clean);
    let number = |name: &str| field(name).and_then(Value::as_u64);
    let show = |name: &str, value: Option<String>| match value {
        Some(value) => line(&format!("{name}: {value}")),
        None => Ok(()),
    };
    let bytes = |n: u64| format!("{} ({n} bytes)", human(n));
    show("image", string("filename"))?;
    show("layers", layers(view))?;
    let subformat = string("subformat").map(|s| format!(", {s}")).unwrap_or_default();
    show("format", string("format").map(|f| f + &subformat))?;
    show("virtual size", number("virtual-size").map(bytes))?;
    show("disk size", number("actual-size").map(human))?;
    show("cluster size", number("cluster-size").map(human))?;
    show("backing file", string("backing-filename"))?;
    show("backing format", string("backing-filename-format"))?;
    for (name, what) in [("corrupt", "marked corrupt"), ("encrypted", "encrypted")] {
        show("note", field(name).map(|_| what.to_string()))?;
    }
    if field("dirty-flag").and_then(Value::as_bool) == Some(true) {
        show("note", Some("not closed cleanly".into()))?;
    }
    for s in field("snapshots").and_then(Value::as_array).into_iter().flatten() {
        let of = |n: &str| s.get(n).and_then(Value::as_str).map(clean).unwrap_or_default();
        show("snapshot", Some(format!("{} {}", of("id"), of("name"))))?;
    }
    for (name, value) in
        field("format-specific").and_then(|s| s.get("data")?.as_object()).into_iter().flatten()
    {
        show(&format!("  {}", clean(name)), Some(clean(&value.to_string())))?;
    }
    let table = field("partition-table");
    let of = |n: &str| table.and_then(|t| t.get(n)).and_then(Value::as_str).map(clean);
    let id = of("id").map(|i| format!(" {i}")).unwrap_or_default();
    show("partition table", of("type").map(|t| t + &id))?;
    for w in field("warnings").and_then(Value::as_array).into_iter().flatten() {
        show("warning", w.as_str().map(clean))?;
    }
    for v in field("volumes").and_then(Value::as_array).into_iter().flatten() {
        volume_text(v)?;
    }
    if let Some(os) = field("operating-system") {
        let of = |n: &str| os.get(n).and_then(Value::as_str).map(clean);
        show("operating system", of("name").or_else(|| of("id")).or(Some("unknown".into())))?;
        show("  ostree deployment", of("ostree-deployment"))?;
        for (at, place) in os.get("mounts").and_then(Value::as_object).into_iter().flatten() {
            show(&format!("  {}", clean(at)), place.as_str().map(clean))?;
        }
    }
    for e in field("boot-entries").and_then(Value::as_array).into_iter().flatten() {
        let of = |n: &str| e.get(n).and_then(Value::as_str).map(clean);
        let title = of("title").map(|t| format!(" ({t})")).unwrap_or_default();
        show("boot entry", of("id").map(|i| i + &title))?;
        show("  linux", of("linux"))?;
        show("  options", of("options"))?;
    }
    Ok(())
}

/// The way to the image, where it is more than one step.
fn layers(view: &Value) -> Option<String> {
    let all = view.get("layers").and_then(Value::as_array)?;
    let kinds = |l: &Value| -> Vec<String> {
        let kinds = l.get("kinds").and_then(Value::as_array).into_iter().flatten();
        kinds.filter_map(Value::as_str).map(String::from).collect()
    };
    let steps = all.iter().map(|l| kinds(l).len()).fold(0usize, usize::saturating_add);
    let shown = all.iter().map(|l| {
        let name = l.get("name").and_then(Value::as_str).map(clean).unwrap_or_default();
        format!("{name} ({})", kinds(l).join(", "))
    });
    (steps > 1).then(|| shown.collect::<Vec<_>>().join(" ▸ "))
}

fn volume_text(v: &Value) -> Outcome<()> {
    let string = |n: &str| v.get(n).and_then(Value::as_str).map(clean);
    let number = |n: &str| v.get(n).and_then(Value::as_u64);
    let head = match (string("logical-volume"), number("partition")) {
        (Some(name), _) => format!("logical volume {name}"),
        (None, Some(n)) => format!("partition {n}"),
        (None, None) => "whole disk".into(),
    };
    let mut words = vec![number("size").map(human).unwrap_or_default()];
    words.extend(string("type-name").or_else(|| string("type")));
    words.extend(string("partition-label").map(|l| format!("name {l}")));
    words.extend(v.get("bootable").map(|_| "bootable".to_string()));
    line(&format!("{head}: {}", words.join(", ")))?;
    if let Some(kind) = string("filesystem") {
        let mut words = vec![kind];
        words.extend(string("label").map(|l| format!("label {l}")));
        words.extend(string("uuid").map(|u| format!("UUID {u}")));
        words.extend(number("free").map(|f| format!("{} free", human(f))));
        line(&format!("  {}", words.join(", ")))?;
    }
    for name in ["log", "member", "read-only", "error"] {
        if let Some(text) = string(name) {
            line(&format!("  {name}: {text}"))?;
        }
    }
    Ok(())
}
