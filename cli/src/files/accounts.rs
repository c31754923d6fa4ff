//! Users and groups, out of the image's own files.

use std::collections::BTreeMap;

use racker_fs::guest::Guest;
use racker_fs::path::read_all;
use racker_fs::tree::tar_in::Names;

use crate::target::Target;

/// `passwd` and `group` of an image are read whole up to this size.
const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;

/// Names by number.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) users: BTreeMap<u32, String>,
    pub(crate) groups: BTreeMap<u32, String>,
    /// The first group of each user.
    first: BTreeMap<u32, u32>,
}

impl Accounts {
    /// Those of the operating system on the disk.
    pub(crate) fn of(target: &Target) -> Self {
        let guest = Guest::find(&target.inspection);
        let read = |path: &str| -> String {
            let text = guest.as_ref().and_then(|g| {
                let place = g.view.resolve(path.as_bytes(), true).ok()?;
                read_all(place.fs.as_ref(), place.node, ACCOUNTS_BYTES_MAX).ok()
            });
            String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
        };
        let mut all = Self::default();
        // Systems on ostree have those of the distribution beside it.
        let both = |name: &str| read(&format!("/etc/{name}")) + "\n" + &read(&format!("/usr/lib/{name}"));
        for line in both("passwd").lines() {
            let mut fields = line.split(':');
            let (name, id, group) = (fields.next(), fields.nth(1), fields.next());
            if let (Some(name), Some(id)) = (name, id.and_then(|id| id.parse().ok())) {
                // Of several names the first one counts.
                all.users.entry(id).or_insert_with(|| name.to_string());
                if let Some(group) = group.and_then(|g| g.parse().ok()) {
                    all.first.entry(id).or_insert(group);
                }
            }
        }
        for line in both("group").lines() {
            let mut fields = line.split(':');
            let (name, id) = (fields.next(), fields.nth(1));
            if let (Some(name), Some(id)) = (name, id.and_then(|id| id.parse().ok())) {
                all.groups.entry(id).or_insert_with(|| name.to_string());
            }
        }
        // Even where no file says so.
        all.users.entry(0).or_insert_with(|| "root".into());
        all.groups.entry(0).or_insert_with(|| "root".into());
        all.first.entry(0).or_insert(0);
        all
    }

    /// The number of a user, by name or number.
    pub(crate) fn user(&self, typed: &str) -> Option<u32> {
        number(&self.users, typed)
    }

    /// The number of a group, by name or number.
    pub(crate) fn group(&self, typed: &str) -> Option<u32> {
        number(&self.groups, typed)
    }

    /// The first group of a user.
    pub(crate) fn first_group(&self, user: u32) -> Option<u32> {
        self.first.get(&user).copied()
    }
}

impl Names for Accounts {
    fn user(&self, name: &str) -> Option<u32> {
        Self::user(self, name)
    }

    fn group(&self, name: &str) -> Option<u32> {
        Self::group(self, name)
    }
}

fn number(names: &BTreeMap<u32, String>, typed: &str) -> Option<u32> {
    let named = names.iter().find(|(_, name)| *name == typed).map(|(id, _)| *id);
    named.or_else(|| typed.strip_prefix('+').unwrap_or(typed).parse().ok())
}
