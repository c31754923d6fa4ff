//! `chown`

use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::{Change, NodeKind};

use super::Act;
use super::accounts::Accounts;
use super::chmod::nodes;
use super::editing::Editing;
use crate::fault::{Failure, Outcome};

/// Change owner and group; names are those of the image's own passwd and group
#[derive(Args, Debug)]
pub(crate) struct Chown {
    /// USER, USER:GROUP, :GROUP, or USER: for the user's own group; numbers are taken too
    #[arg(value_name = "OWNER")]
    owner: String,
    /// Files or folders inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folders and all below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Symbolic links themselves, not what they lead to
    #[arg(long)]
    no_dereference: bool,
}

/// Numbers of an owner that was typed.
pub(super) fn owner(typed: &str, editing: &Editing<'_>) -> Outcome<(Option<u32>, Option<u32>)> {
    let accounts = Accounts::of(editing.target);
    let unknown = |what: &str, name: &str| {
        Failure::new(format!("the image knows no {what} {name:?}")).hint("a number is taken as it is")
    };
    let (user, group) = match typed.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (typed, None),
    };
    let uid = match user {
        "" => None,
        name => Some(accounts.user(name).ok_or_else(|| unknown("user", name))?),
    };
    let gid = match (group, uid) {
        (None, _) | (Some(""), None) => None,
        (Some(""), Some(uid)) => {
            Some(accounts.first_group(uid).ok_or_else(|| unknown("group of the user", user))?)
        }
        (Some(name), _) => Some(accounts.group(name).ok_or_else(|| unknown("group", name))?),
    };
    if uid.or(gid).is_none() {
        return Err(Failure::new(format!("{typed:?} names no owner")));
    }
    Ok((uid, gid))
}

impl Act for Chown {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        let (uid, gid) = owner(&self.owner, editing)?;
        for path in &self.paths {
            let place = editing.place(path, !self.no_dereference && !self.recursive)?;
            for (node, kind) in nodes(&place, self.recursive, editing)? {
                editing.change(path, place.volume, |writer, now| {
                    let stat = writer.filesystem().stat(node)?;
                    // Whoever gets a program of somebody else does not get that one's rights with it.
                    let special = if stat.mode & 0o010 != 0 { 0o6000 } else { 0o4000 };
                    let mode = (kind == NodeKind::File).then_some(stat.mode & !special);
                    writer.set_attributes(node, &Change { uid, gid, mode, ..Change::default() }, now)
                })?;
            }
        }
        Ok(())
    }
}
