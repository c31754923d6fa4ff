//! `df`

use clap::Args;
use racker_fs::inspect::Volume;
use serde_json::json;

use super::{Look, On};
use crate::clean::clean;
use crate::fault::Outcome;
use crate::output::{self, human, line};

/// Show how much room the filesystems have
#[derive(Args, Debug)]
pub(crate) struct Df {
    /// Sizes in bytes
    #[arg(short = 'b', long)]
    bytes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Look for Df {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let chosen = match &on.which.partition {
            Some(name) => Some(on.target.view_of(name)?.root()?.volume),
            None => None,
        };
        let volumes = on.target.inspection.volumes.iter().enumerate();
        let wanted = volumes.filter(|(i, _)| chosen.is_none_or(|c| c == *i)).map(|(_, v)| v);
        let rows: Vec<_> = wanted.filter_map(|v| Some((v.name(), Volume::facts(v)?))).collect();
        if self.json {
            let rows: Vec<_> = rows
                .iter()
                .map(|(name, facts)| {
                    json!({
                        "volume": name, "filesystem": facts.kind, "label": facts.label, "size": facts.size,
                        "used": facts.size.saturating_sub(facts.free), "free": facts.free,
                    })
                })
                .collect();
            return output::json(&rows);
        }
        let size = |bytes: u64| if self.bytes { bytes.to_string() } else { human(bytes) };
        line(&format!(
            "{:<12} {:<6} {:>12} {:>12} {:>12} {:>5}  {}",
            "volume", "type", "size", "used", "free", "use", "label"
        ))?;
        for (name, facts) in &rows {
            let used = facts.size.saturating_sub(facts.free);
            let percent = used.saturating_mul(100).checked_div(facts.size).unwrap_or(0);
            let label = facts.label.as_deref().unwrap_or_default();
            let text = format!(
                "{:<12} {:<6} {:>12} {:>12} {:>12} {percent:>4}%  {}",
                clean(name),
                facts.kind,
                size(facts.size),
                size(used),
                size(facts.free),
                clean(label)
            );
            line(text.trim_end())?;
        }
        Ok(())
    }
}
