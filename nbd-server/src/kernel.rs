//! The kernel's NBD client, asked by generic netlink (Linux: `include/uapi/linux/nbd-netlink.h`, `netlink(7)`).
//!
//! It takes sockets on which the handshake is over, and makes a block device of them.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use racker_formats::error::{Fault, Kind, Result};
use racker_formats::wire::{len64, part};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

/// Heads of a message: netlink's, generic netlink's, an attribute's.
const MESSAGE: usize = 16;
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;
/// The family that knows the others, its question and the two attributes of it.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `nlmsg_flags`: a request that is to be answered.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// `nlmsg_type` of an answer that is a number.
const ERROR: u16 = 2;
/// An attribute that holds others.
const NESTED: u16 = 0x8000;
/// Bytes of the longest answer: the kernel sends no more at a time.
const ANSWER_MAX: usize = 32 << 10;
/// Messages that are looked at for one answer.
const ANSWERS_MAX: u32 = 64;

/// Commands of the family.
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;

/// Its attributes.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    pub(super) const SOCKET_ITEM: u16 = 1;
    pub(super) const SOCKET_FD: u16 = 1;
}

/// Why the kernel does not do it.
#[derive(Debug, thiserror::Error)]
pub enum KernelFault {
    /// The module is not there.
    #[error("the kernel has no NBD client")]
    NoModule,
    /// Root alone may.
    #[error("only root may attach and detach devices")]
    Denied,
    /// The device is taken.
    #[error("/dev/nbd{0} is in use")]
    Busy(u32),
    /// There is no such device, or none left.
    #[error("there is no NBD device of that number, or all are in use")]
    NoDevice,
    /// Something else.
    #[error("the kernel refuses: {0}")]
    Refused(Errno),
    /// An answer that is none.
    #[error("the kernel's answer makes no sense")]
    Answer,
}

impl Fault for KernelFault {
    fn kind(&self) -> Kind {
        match self {
            Self::NoModule => Kind::Unsupported,
            Self::Denied => Kind::Denied,
            Self::Busy(_) => Kind::Busy,
            Self::NoDevice => Kind::NotFound,
            Self::Refused(_) | Self::Answer => Kind::Io,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoModule => Some("modprobe nbd loads it; in a container the host has to".into()),
            Self::Denied => Some("racker disk mount and racker disk serve need no right of root".into()),
            Self::Busy(_) | Self::NoDevice => Some("without a device named, a free one is taken".into()),
            Self::Refused(_) | Self::Answer => None,
        }
    }
}

/// A disk to be attached.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// The number of the device; a free one if none is named.
    pub index: Option<u32>,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a block as the kernel sees them.
    pub block: u64,
    /// What the server said of the export in the handshake.
    pub flags: u16,
    /// Where the handshake is over.
    pub sockets: &'a [OwnedFd],
    /// How long requests wait for another server when this one is gone.
    pub patience: Duration,
    /// Who serves it, for whoever serves it next.
    pub backend: &'a str,
}

/// A way to the kernel's client.
#[derive(Debug)]
pub struct Kernel {
    socket: OwnedFd,
    family: u16,
    sequence: Cell<u32>,
}

/// A message's attributes, as they are put together.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = ATTRIBUTE.saturating_add(value.len());
        self.0.extend(u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_ne_bytes());
    }

    fn sockets(&mut self, sockets: &[OwnedFd]) {
        let mut list = Self::default();
        for socket in sockets {
            let mut item = Self::default();
            item.put(attribute::SOCKET_FD, &socket.as_raw_fd().to_ne_bytes());
            list.put(attribute::SOCKET_ITEM | NESTED, &item.0);
        }
        self.put(attribute::SOCKETS | NESTED, &list.0);
    }
}

fn two(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn four(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The value of an attribute.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(two(bytes, 0)?);
        let value = bytes.get(ATTRIBUTE..len)?;
        if two(bytes, 2)? & !NESTED == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

impl Kernel {
    /// Finds it.
    pub fn open() -> Result<Self> {
        let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::GENERIC));
        let socket = socket.map_err(KernelFault::Refused)?;
        let mut kernel = Self { socket, family: CONTROL, sequence: Cell::new(1) };
        let mut name = Attributes::default();
        name.put(FAMILY_NAME, b"nbd\0");
        let answer = kernel.ask(GET_FAMILY, &name).map_err(|e| match e {
            Errno::NOENT => KernelFault::NoModule,
            e => KernelFault::Refused(e),
        })?;
        let id = answer.as_deref().and_then(|a| two(find(a, FAMILY_ID)?, 0));
        kernel.family = id.ok_or(KernelFault::Answer)?;
        Ok(kernel)
    }

    /// Makes a device of a disk and says which.
    pub fn connect(&self, disk: &Attachment<'_>) -> Result<u32> {
        let answer = self.ask(CONNECT, &all(disk)).map_err(|e| refusal(e, disk.index))?;
        let index = answer.as_deref().and_then(|a| four(find(a, attribute::INDEX)?, 0)).or(disk.index);
        Ok(index.ok_or(KernelFault::Answer)?)
    }

    /// Gives a device whose server is gone another one.
    pub fn reconnect(&self, disk: &Attachment<'_>) -> Result<()> {
        self.ask(RECONFIGURE, &all(disk)).map_err(|e| refusal(e, disk.index))?;
        Ok(())
    }

    /// Ends a device: the server is told so.
    pub fn disconnect(&self, index: u32) -> Result<()> {
        let mut which = Attributes::default();
        which.put(attribute::INDEX, &index.to_ne_bytes());
        self.ask(DISCONNECT, &which).map_err(|e| refusal(e, Some(index)))?;
        Ok(())
    }

    /// Sends a request and waits for its answer: what comes with it, if anything does.
    fn ask(&self, command: u8, attributes: &Attributes) -> std::result::Result<Option<Vec<u8>>, Errno> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        let len = MESSAGE.saturating_add(GENERIC).saturating_add(attributes.0.len());
        let mut message = Vec::with_capacity(len);
        message.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(self.family.to_ne_bytes());
        message.extend((REQUEST | ACK).to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend([command, 1, 0, 0]);
        message.extend(&attributes.0);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut found = None;
        for _ in 0..ANSWERS_MAX {
            let mut buf = vec![0; ANSWER_MAX];
            let (got, _) = recv(&self.socket, buf.as_mut_slice(), RecvFlags::empty())?;
            let mut rest = buf.get(..got).unwrap_or_default();
            while let Some(len) =
                four(rest, 0).and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= MESSAGE)
            {
                let Some(one) = rest.get(..len) else { break };
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
                if four(one, 8) != Some(sequence) {
                    continue;
                }
                if two(one, 4) == Some(ERROR) {
                    let code = four(one, MESSAGE).map_or(0, u32::cast_signed);
                    return if code == 0 {
                        Ok(found)
                    } else {
                        Err(Errno::from_raw_os_error(code.saturating_neg()))
                    };
                }
                let head = MESSAGE.saturating_add(GENERIC);
                let values = part(one, head, one.len().saturating_sub(head), "answer");
                found = values.ok().map(<[u8]>::to_vec);
            }
        }
        Err(Errno::PROTO)
    }
}

fn all(disk: &Attachment<'_>) -> Attributes {
    let mut all = Attributes::default();
    if let Some(index) = disk.index {
        all.put(attribute::INDEX, &index.to_ne_bytes());
    }
    all.number(attribute::SIZE_BYTES, disk.size);
    all.number(attribute::BLOCK_SIZE_BYTES, disk.block);
    all.number(attribute::SERVER_FLAGS, disk.flags.into());
    all.number(attribute::DEAD_CONN_TIMEOUT, disk.patience.as_secs());
    let mut backend = disk.backend.as_bytes().to_vec();
    backend.push(0);
    all.put(attribute::BACKEND_IDENTIFIER, &backend);
    all.sockets(disk.sockets);
    all
}

fn refusal(errno: Errno, index: Option<u32>) -> KernelFault {
    match (errno, index) {
        (Errno::PERM | Errno::ACCESS, _) => KernelFault::Denied,
        (Errno::BUSY, Some(index)) => KernelFault::Busy(index),
        (Errno::BUSY | Errno::INVAL | Errno::NOENT | Errno::NODEV, None) => KernelFault::NoDevice,
        (Errno::NOENT | Errno::NODEV, Some(_)) => KernelFault::NoDevice,
        (errno, _) => KernelFault::Refused(errno),
    }
}

/// The client's half of the handshake in its shortest form, on a stream to our own server: the size of the disk that
/// is served by default, and its transmission flags.
pub fn shake_hands(stream: &mut (impl std::io::Read + std::io::Write)) -> Result<(u64, u16)> {
    let mut hello = [0u8; 18];
    stream.read_exact(&mut hello)?;
    // Fixed newstyle, no zeroes behind the answer; then the option EXPORT_NAME with no name.
    let mut request = 3u32.to_be_bytes().to_vec();
    request.extend(b"IHAVEOPT");
    request.extend(1u32.to_be_bytes());
    request.extend(0u32.to_be_bytes());
    stream.write_all(&request)?;
    let mut answer = [0u8; 10];
    stream.read_exact(&mut answer)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, f0, f1] = answer;
    if !hello.starts_with(b"NBDMAGICIHAVEOPT") || len64(hello.len()) != 18 {
        return Err(KernelFault::Answer.into());
    }
    Ok((u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), u16::from_be_bytes([f0, f1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_again() {
        let mut all = Attributes::default();
        all.put(5, b"abc");
        all.number(7, 99);
        all.put(attribute::INDEX, &3u32.to_ne_bytes());
        assert_eq!(find(&all.0, 5), Some(b"abc".as_slice()));
        assert_eq!(find(&all.0, 7), Some(99u64.to_ne_bytes().as_slice()));
        assert_eq!(find(&all.0, attribute::INDEX).and_then(|v| four(v, 0)), Some(3));
        assert_eq!(find(&all.0, 9), None);
        assert_eq!(find(&[4, 0, 1], 1), None);
        assert_eq!(find(&[0, 0, 1, 0], 2), None, "an attribute shorter than its head ends the search");
    }
}
