//! The user's own editor on a copy.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use crate::fault::{About, Failure, Outcome};

/// Opens `content` in $VISUAL or $EDITOR under the name it has in the image, and returns what was saved.
///
/// The copy lies in a folder that nobody else can enter, since the file may be a secret one. When the editor
/// fails, the copy stays and the error says where.
pub(super) fn edit(name: &str, content: &[u8]) -> Outcome<Vec<u8>> {
    let folder = tempfile::Builder::new().prefix("racker-edit-").tempdir()?;
    let safe: String = name.chars().map(|c| if c.is_control() || c == '/' { '_' } else { c }).collect();
    let path = folder.path().join(safe);
    fs::write(&path, content)?;
    let editor = ["VISUAL", "EDITOR"]
        .iter()
        .find_map(|v| std::env::var_os(v).filter(|e| !e.is_empty()))
        .unwrap_or_else(|| OsString::from("vi"));
    // As git does it: the variable may hold arguments and shell words.
    let mut script = editor.clone();
    script.push(" \"$@\"");
    let status = Command::new("sh").arg("-c").arg(script).arg(&editor).arg(&path).status();
    let keep = |what: String| {
        let kept = folder.keep();
        Failure::new(what).hint(format!("your text is kept in {}", kept.display()))
    };
    match status {
        Ok(status) if status.success() => fs::read(&path).about(&path),
        Ok(status) => {
            Err(keep(format!("the editor {} ended with {status}: nothing was written", editor.display())))
        }
        Err(e) => Err(keep(format!("the editor {} did not start: {e}", editor.display()))),
    }
}
