//! Options as `-o K=V,K=V` spells them. A name by itself switches something on.

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
    fn commas_are_typed_twice() {
        let mut all = pairs(&["a=1,b=x,,y".into(), "c=".into()]).unwrap();
        let expected = [("a", "1"), ("b", "x,y"), ("c", "")].map(|(n, v)| (n.to_string(), v.to_string()));
        assert_eq!(all, expected);
        assert_eq!(take(&mut all, "b"), Some("x,y".into()));
        assert_eq!(all.len(), 2);
        assert_eq!(pairs(&["flag".into()]).unwrap(), [("flag".to_string(), "on".to_string())]);
    }
}
