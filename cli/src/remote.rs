//! From what was typed as an image to an opened one: a path of this machine, or the address of an NBD server's disk.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use racker_formats::Result;
use racker_formats::block::Disk;
use racker_formats::convert::NewFile;
use racker_formats::open::{self, OpenOptions, Opened};
use racker_nbd::client::address::{Address, is_address};
use racker_nbd::client::fault::ClientFault;
use racker_nbd::client::limits::Patience;
use racker_nbd::client::{self, connect};

/// Whether an image lies on another machine, or on this one behind a server. A file of such a name is typed `./nbd:…`.
pub(crate) fn is_remote(image: &Path) -> bool {
    is_address(image.as_os_str().as_bytes())
}

/// What a remote disk is called by its server.
pub(crate) fn remote_name(image: &Path) -> Option<String> {
    let export = if is_remote(image) { address(image).ok()?.export } else { return None };
    Some(if export.is_empty() { "disk".into() } else { export })
}

/// Opens an image, locked for what is going to happen where it has a file to lock.
pub(crate) fn open(image: &Path, options: &OpenOptions<'_>) -> Result<Opened> {
    match remote_name(image) {
        Some(name) => open::open_remote(disk(image, options.write)?, &name, options),
        None if is_remote(image) => Err(address(image).err().unwrap_or(ClientFault::NotNbd).into()),
        None => open::open(image, options),
    }
}

/// Has the server of a remote disk make it larger; who has it open keeps the size it had.
pub(crate) fn grow(image: &Path, size: u64) -> Result<()> {
    client::grow(&address(image)?, size, Patience::default())
}

/// Prepares a new image: a file that appears when it is complete, or what is written in place.
pub(crate) fn new_file(target: &Path, durable: bool) -> Result<NewFile> {
    if is_remote(target) {
        return Ok(NewFile::over(disk(target, true)?));
    }
    NewFile::prepare_for(target, durable)
}

fn address(image: &Path) -> std::result::Result<Address, ClientFault> {
    let text = image.to_str().ok_or_else(|| ClientFault::Address("is no text".into()))?;
    Address::parse(text)
}

fn disk(image: &Path, write: bool) -> Result<Disk> {
    let disk = connect(&address(image)?, Patience::default())?;
    if !write {
        return Ok(disk.read_only());
    }
    if !disk.writable() {
        return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the server lets nobody write").into());
    }
    Ok(disk)
}
