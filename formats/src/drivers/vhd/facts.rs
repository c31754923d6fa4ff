//! What `info` prints.

use serde_json::json;

use super::footer::Footer;
use crate::registry::Facts;

/// What the footer says.
pub(super) fn of_footer(footer: &Footer) -> Facts {
    let mut facts = Facts { format: "vhd", virtual_size: footer.size, ..Facts::default() };
    facts.subformat = Some(footer.disk_type.name().into());
    let mut put = |name: &str, value| facts.specific.insert(name.to_string(), value);
    put("unique-id", json!(footer.unique_id.to_string()));
    put("creator", json!(footer.creator()));
    if footer.saved_state() {
        put("saved-state", json!(true));
    }
    // The geometry counts, and some programs go by the other number.
    if footer.current_size() != footer.size {
        put("current-size", json!(footer.current_size()));
    }
    facts
}
