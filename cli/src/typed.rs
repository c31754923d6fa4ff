//! Options as `-o K=V,K=V` spells them. A name by itself switches something on.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::fault::{Failure, Outcome};

/// The pairs of all `-o` in order. A comma inside a value is typed twice, as for `qemu-img`.
pub(crate) fn pairs(typed: &[String]) -> Outcome<Vec<(String, String)>> {
    let mut all = Vec::new();
    for text in typed {
        for item in split(text) {
            let pair = match item.split_once('=') {
                Some(("", _)) => return Err(Failure::new(format!("-o {item:?} names no option"))),
                Some((name, value)) => (name.to_string(), value.to_string()),
                None => (item, "on".into()),
            };
            all.push(pair);
        }
    }
    Ok(all)
}

/// Takes the pair named `name` out; the last one counts.
pub(crate) fn take(pairs: &mut Vec<(String, String)>, name: &str) -> Option<String> {
    let mut found = None;
    pairs.retain(|(n, value)| {
        let is_it = n == name;
        if is_it {
            found = Some(value.clone());
        }
        !is_it
    });
    found
}

/// The path and the format of an image that is described as `qemu-img --image-opts` has it.
pub(crate) fn description(text: &Path) -> Outcome<(PathBuf, Option<String>)> {
    const HINT: &str = "racker knows driver=FORMAT, file.filename=PATH and file.driver=file";
    let refused = |what: String| Failure::new(format!("--image-opts: {what}")).hint(HINT);
    // Every byte as a character of its own, so that names need not be text.
    let bytes: String = text.as_os_str().as_bytes().iter().map(|byte| char::from(*byte)).collect();
    let (mut path, mut format) = (None, None);
    for (key, value) in pairs(&[bytes])? {
        match (key.as_str(), value.as_str()) {
            ("filename" | "file.filename", _) => path = Some(value),
            ("driver", _) => format = Some(value),
            ("file.driver", "file" | "host_device") => {}
            // How QEMU would go about it, which is not to be seen in the result.
            ("cache.direct" | "cache.no-flush", "on" | "off") => {}
            _ => return Err(refused(format!("{key}={value} is not supported"))),
        }
    }
    let Some(path) = path else { return Err(refused("no file.filename is in it".into())) };
    let path = path.chars().map(u8::try_from).collect::<Result<Vec<u8>, _>>();
    let path = path.map_err(|_| refused("the name is not as it was typed".into()))?;
    Ok((OsString::from_vec(path).into(), format))
}

fn split(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        match items.last_mut() {
            Some(item) if c != ',' || doubled => item.push(c),
            _ => items.push(String::new()),
        }
    }
    items.retain(|i| !i.is_empty());
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_described_by_driver_and_name() {
        let described = |text: &str| description(Path::new(text)).map_err(|e| e.report());
        let found = |path: &str, format: Option<&str>| Ok((PathBuf::from(path), format.map(str::to_string)));
        let plain = "driver=qcow2,file.driver=file,file.filename=/a/ü,,b";
        assert_eq!(described(plain), found("/a/ü,b", Some("qcow2")));
        assert_eq!(described("file.filename=x"), found("x", None));
        for (text, word) in [
            ("driver=qcow2,file.driver=nbd,file.filename=x", "file.driver=nbd"),
            ("driver=qcow2,file.filename=x,backing.driver=raw", "backing.driver=raw"),
            ("driver=qcow2", "file.filename"),
        ] {
            assert!(described(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn commas_are_typed_twice() {
        let mut all = pairs(&["a=1,b=x,,y".into(), "c=".into()]).unwrap();
        let expected = [("a", "1"), ("b", "x,y"), ("c", "")].map(|(n, v)| (n.to_string(), v.to_string()));
        assert_eq!(all, expected);
        assert_eq!(take(&mut all, "b"), Some("x,y".into()));
        assert_eq!(all.len(), 2);
        assert_eq!(pairs(&["flag".into()]).unwrap(), [("flag".to_string(), "on".to_string())]);
    }
}
