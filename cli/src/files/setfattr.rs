//! `setfattr`

use std::path::PathBuf;

use clap::Args;

use super::Act;
use super::editing::Editing;
use crate::fault::{Failure, Outcome};

/// Set or remove an extended attribute
#[derive(Args, Debug)]
pub(crate) struct Setfattr {
    /// Name of the attribute to set: user.NAME, trusted.NAME, security.NAME
    #[arg(short = 'n', long, value_name = "NAME", required_unless_present = "remove")]
    name: Option<String>,
    /// Its value: text, 0x and hexadecimal digits, or 0s and base64; nothing where not given
    #[arg(
        short = 'v',
        long,
        value_name = "VALUE",
        requires = "name",
        default_value = "",
        hide_default_value = true
    )]
    value: String,
    /// Name of the attribute to remove
    #[arg(short = 'x', long, value_name = "NAME", conflicts_with = "name")]
    remove: Option<String>,
    /// Files or folders inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Symbolic links themselves, not what they lead to
    #[arg(long)]
    no_dereference: bool,
}

impl Setfattr {
    /// The value that was typed.
    fn bytes(&self) -> Outcome<Vec<u8>> {
        let wrong = || Failure::new(format!("{:?} is no value of hexadecimal digits", self.value));
        if let Some(digits) = self.value.strip_prefix("0x").or(self.value.strip_prefix("0X")) {
            let pairs = digits.as_bytes().chunks(2);
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes = pairs.map(|pair| byte(pair).filter(|_| pair.len() == 2)).collect::<Option<Vec<u8>>>();
            return bytes.ok_or_else(wrong);
        }
        if let Some(text) = self.value.strip_prefix("0s").or(self.value.strip_prefix("0S")) {
            let bytes = racker_fs::tree::tar_in::base64(text.as_bytes());
            return bytes.ok_or_else(|| Failure::new(format!("{:?} is not base64", self.value)));
        }
        Ok(self.value.clone().into_bytes())
    }
}

impl Act for Setfattr {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        let value = match &self.name {
            Some(_) => Some(self.bytes()?),
            None => None,
        };
        let name = self.name.as_ref().or(self.remove.as_ref()).map(|n| n.as_bytes()).unwrap_or_default();
        for path in &self.paths {
            let place = editing.place(path, !self.no_dereference)?;
            editing.change(path, place.volume, |writer, now| {
                if value.is_none() && writer.xattr(place.node, name)?.is_none() {
                    return Err(std::io::Error::other("has no such attribute").into());
                }
                writer.set_xattr(place.node, name, value.as_deref(), now)
            })?;
        }
        Ok(())
    }
}
