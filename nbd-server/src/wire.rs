//! The protocol's numbers, and frames as bytes: parsed and printed, without any I/O.
//!
//! NBD's `doc/proto.md`, with the branches `extension-ext-header` and `extension-resize`.

use bitflags::bitflags;

/// `NBDMAGIC`, the server's first bytes.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before each option and after [`INIT_MAGIC`].
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Before a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Before a chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of a compact request.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of an extended request.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Bytes of an option before its data.
pub const OPTION_BYTES: usize = 16;
/// Bytes of an answer to an option before its data.
pub const OPTION_REPLY_BYTES: usize = 20;
/// Bytes of a simple reply before its data.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk of a structured reply before its payload.
pub const STRUCTURED_REPLY_BYTES: usize = 20;
/// Bytes of a chunk of an extended reply before its payload.
pub const EXTENDED_REPLY_BYTES: usize = 32;
/// Zeroes behind the answer to `EXPORT_NAME`, unless both sides leave them out.
pub const EXPORT_NAME_ZEROES: usize = 124;

bitflags! {
    /// What the server says of itself in the first frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// The fixed newstyle handshake.
        const FIXED_NEWSTYLE = 1;
        /// Nothing follows the answer to `EXPORT_NAME`, if the client agrees.
        const NO_ZEROES = 1 << 1;
    }

    /// What an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExportFlags: u16 {
        /// Always there.
        const HAS_FLAGS = 1;
        /// It cannot be written.
        const READ_ONLY = 1 << 1;
        /// `FLUSH`.
        const SEND_FLUSH = 1 << 2;
        /// The flag `FUA`.
        const SEND_FUA = 1 << 3;
        /// `TRIM`.
        const SEND_TRIM = 1 << 5;
        /// `WRITE_ZEROES`.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// The flag `DF`.
        const SEND_DF = 1 << 7;
        /// A flush on one connection is good for all.
        const CAN_MULTI_CONN = 1 << 8;
        /// `RESIZE`.
        const SEND_RESIZE = 1 << 9;
        /// `CACHE`.
        const SEND_CACHE = 1 << 10;
        /// The flag `FAST_ZERO`.
        const SEND_FAST_ZERO = 1 << 11;
        /// `BLOCK_STATUS` of chosen contexts.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// The flags of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// On stable storage before the reply.
        const FUA = 1;
        /// Zeroes that take space.
        const NO_HOLE = 1 << 1;
        /// One content chunk at most.
        const DF = 1 << 2;
        /// One extent for each context.
        const REQ_ONE = 1 << 3;
        /// Zeroes only if that is faster than writing them.
        const FAST_ZERO = 1 << 4;
        /// The length is that of the payload that follows.
        const PAYLOAD_LEN = 1 << 5;
        /// The others, which no command knows.
        const _ = !0;
    }
}

/// The options of the handshake.
pub mod option {
    /// Chooses an export, without any way to say no.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the session.
    pub const ABORT: u32 = 2;
    /// Lists the exports.
    pub const LIST: u32 = 3;
    /// Goes on with TLS.
    pub const STARTTLS: u32 = 5;
    /// Asks about an export.
    pub const INFO: u32 = 6;
    /// Chooses an export.
    pub const GO: u32 = 7;
    /// Replies come in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Lists the metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Selects metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Requests and replies have lengths of 64 bits.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// The answers to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    /// The option is not allowed.
    pub const ERR_POLICY: u32 = 0x8000_0002;
    /// The option makes no sense.
    pub const ERR_INVALID: u32 = 0x8000_0003;
    /// The server cannot do it on its platform.
    pub const ERR_PLATFORM: u32 = 0x8000_0004;
    /// TLS comes first.
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    /// The server is about to end.
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    /// The client has to ask for the block size.
    pub const ERR_BLOCK_SIZE_REQD: u32 = 0x8000_0008;
    /// Too much was asked.
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
    /// Extended headers were agreed on already.
    pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;
}

/// What [`reply::INFO`] tells.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The name that the server has for it.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// How requests are best cut.
    pub const BLOCK_SIZE: u16 = 3;
}

/// The requests.
pub mod command {
    /// Reads.
    pub const READ: u16 = 0;
    /// Writes.
    pub const WRITE: u16 = 1;
    /// Ends the session.
    pub const DISC: u16 = 2;
    /// Puts what was written on stable storage.
    pub const FLUSH: u16 = 3;
    /// Gives space back.
    pub const TRIM: u16 = 4;
    /// Will be read soon.
    pub const CACHE: u16 = 5;
    /// Writes zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Asks what metadata contexts say.
    pub const BLOCK_STATUS: u16 = 7;
    /// Changes the size.
    pub const RESIZE: u16 = 8;
}

/// The chunks of structured replies.
pub mod chunk {
    /// Nothing more.
    pub const NONE: u16 = 0;
    /// Bytes of the disk.
    pub const OFFSET_DATA: u16 = 1;
    /// A stretch of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents with 32 bits.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with 64 bits.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error.
    pub const ERROR: u16 = 0x8001;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = 0x8002;
    /// The flag of the last chunk of a reply.
    pub const DONE: u16 = 1;
}

/// Reads fields out of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(now)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*now)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its length.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(usize::try_from(len).ok()?)
    }

    /// Whether nothing is left.
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its flags, known or not.
    pub flags: CommandFlags,
    /// What is to be done.
    pub command: u16,
    /// What its reply carries as well.
    pub cookie: u64,
    /// Offset in bytes.
    pub at: u64,
    /// Length in bytes: of the payload, or of the stretch of disk.
    pub len: u64,
}

impl Frame {
    /// Parses a compact request; `None` if it is none.
    pub fn compact(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == REQUEST_MAGIC).then_some(())?;
        Some(Self {
            flags: CommandFlags::from_bits_retain(fields.u16()?),
            command: fields.u16()?,
            cookie: fields.u64()?,
            at: fields.u64()?,
            len: fields.u32()?.into(),
        })
    }

    /// Parses an extended request; `None` if it is none.
    pub fn extended(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == EXTENDED_REQUEST_MAGIC).then_some(())?;
        Some(Self {
            flags: CommandFlags::from_bits_retain(fields.u16()?),
            command: fields.u16()?,
            cookie: fields.u64()?,
            at: fields.u64()?,
            len: fields.u64()?,
        })
    }
}

impl Frame {
    /// Prints a request, compact or extended; a compact one has no length beyond 32 bits.
    pub fn put(&self, out: &mut Vec<u8>, is_extended: bool) {
        out.put32(if is_extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC });
        out.put16(self.flags.bits());
        out.put16(self.command);
        out.put64(self.cookie);
        out.put64(self.at);
        if is_extended {
            out.put64(self.len);
        } else {
            out.put32(u32::try_from(self.len).unwrap_or(u32::MAX));
        }
    }
}

/// What stands before a reply's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHead {
    /// A reply in one piece.
    Simple {
        /// The request's cookie.
        cookie: u64,
        /// The number of an error, or 0.
        error: u32,
    },
    /// One chunk of a reply.
    Chunk {
        /// The request's cookie.
        cookie: u64,
        /// Nothing follows it.
        is_last: bool,
        /// One of [`chunk`].
        kind: u16,
        /// Bytes of payload.
        len: u64,
    },
}

impl ReplyHead {
    /// Parses a simple reply; `None` if it is none.
    pub fn simple(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == SIMPLE_REPLY_MAGIC).then_some(())?;
        Some(Self::Simple { error: fields.u32()?, cookie: fields.u64()? })
    }

    /// Parses a chunk of a structured reply; `None` if it is none.
    pub fn structured(bytes: &[u8; STRUCTURED_REPLY_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == STRUCTURED_REPLY_MAGIC).then_some(())?;
        let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        Some(Self::Chunk { cookie, is_last: flags & chunk::DONE != 0, kind, len: fields.u32()?.into() })
    }

    /// Parses a chunk of an extended reply; `None` if it is none.
    pub fn extended(bytes: &[u8; EXTENDED_REPLY_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == EXTENDED_REPLY_MAGIC).then_some(())?;
        let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        // The request's offset once more.
        fields.u64()?;
        Some(Self::Chunk { cookie, is_last: flags & chunk::DONE != 0, kind, len: fields.u64()? })
    }

    /// The cookie of the request that is answered.
    pub fn cookie(&self) -> u64 {
        match self {
            Self::Simple { cookie, .. } | Self::Chunk { cookie, .. } => *cookie,
        }
    }
}

/// Prints fields into a frame.
pub trait Put {
    /// 16 bits.
    fn put16(&mut self, value: u16);
    /// 32 bits.
    fn put32(&mut self, value: u32);
    /// 64 bits.
    fn put64(&mut self, value: u64);
}

impl Put for Vec<u8> {
    fn put16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }
}

/// Prints an option.
pub fn put_option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.put64(OPTION_MAGIC);
    out.put32(option);
    // Options are a few KiB.
    out.put32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(data);
}

/// Prints a string behind its length.
pub fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    // Names are limited.
    out.put32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(text);
}

/// Prints an answer to an option.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.put64(OPTION_REPLY_MAGIC);
    out.put32(option);
    out.put32(kind);
    // Answers are a few KiB.
    out.put32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_their_magic() {
        let mut bytes = Vec::new();
        bytes.put32(REQUEST_MAGIC);
        bytes.put16(0x8001);
        bytes.put16(command::WRITE);
        bytes.put64(7);
        bytes.put64(512);
        bytes.put32(4096);
        let frame = Frame::compact(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!((frame.command, frame.cookie, frame.at, frame.len), (command::WRITE, 7, 512, 4096));
        assert!(frame.flags.contains(CommandFlags::FUA));
        assert_eq!(frame.flags.bits(), 0x8001);
        bytes[0] ^= 1;
        assert_eq!(Frame::compact(bytes.first_chunk().unwrap()), None);
    }

    #[test]
    fn fields_end_with_the_frame() {
        let mut fields = Fields(&[0, 0, 0, 3, b'a', b'b']);
        assert_eq!(fields.string(), None);
        let mut fields = Fields(&[0, 0, 0, 2, b'a', b'b', 9]);
        assert_eq!(fields.string(), Some(b"ab".as_slice()));
        assert_eq!(fields.u16(), None);
        assert!(!fields.is_done());
    }
}
