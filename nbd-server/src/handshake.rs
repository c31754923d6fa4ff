//! The handshake: fixed newstyle, every option.
//!
//! Frames are read to their exact length and nothing is read ahead, so that what a stranger sends before TLS begins
//! can never be taken for something that came through it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::context::Context;
use crate::export::Export;
use crate::limits::{
    CONTEXTS_MAX, NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTION_DRAIN_MAX, OPTIONS_MAX, PAYLOAD_MAX,
};
use crate::server::Shared;
use crate::stream::{Stream, fill, send};
use crate::tls::Tls;
use crate::wire::{
    EXPORT_NAME_ZEROES, ExportFlags, Fields, HandshakeFlags, INIT_MAGIC, OPTION_BYTES, OPTION_MAGIC, Put,
    info, option, put_option_reply, put_string, reply,
};

/// The zeroes behind the answer to `EXPORT_NAME`.
const ZEROES: [u8; EXPORT_NAME_ZEROES] = [0; EXPORT_NAME_ZEROES];

/// How replies look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Replies {
    /// A header, and the data of a read.
    #[default]
    Simple,
    /// In chunks.
    Structured,
    /// In chunks with lengths of 64 bits, and so are requests.
    Extended,
}

/// What was agreed on.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) export: Arc<Export>,
    pub(crate) flags: ExportFlags,
    pub(crate) replies: Replies,
    /// Selected contexts with their numbers.
    pub(crate) contexts: Vec<(u32, Arc<dyn Context>)>,
}

/// How a handshake ends.
#[derive(Debug)]
pub(crate) enum End {
    /// Requests follow, on this stream.
    Go(Box<Session>, Arc<dyn Stream>),
    /// The client leaves as the protocol has it, or did not begin.
    Left,
}

/// Why a connection is cut off.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The stream failed or ended in the middle of something.
    Io(io::Error),
    /// The client broke the protocol.
    Broken(&'static str),
}

impl From<io::Error> for Cut {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(e) => write!(f, "{e}"),
            Self::Broken(what) => f.write_str(what),
        }
    }
}

/// What options have changed so far.
#[derive(Debug, Default)]
struct State {
    replies: Replies,
    no_zeroes: bool,
    secure: bool,
    /// The export that contexts were selected of, and their numbers.
    selected: Option<(Vec<u8>, Vec<u32>)>,
}

/// One handshake.
#[derive(Debug)]
pub(crate) struct Handshake<'a> {
    server: &'a Shared,
    stream: Arc<dyn Stream>,
    until: Instant,
    state: State,
    /// Answers to one option.
    out: Vec<u8>,
}

/// What follows an option.
enum Next {
    Option,
    Secure,
    Go(Arc<Export>),
    Leave,
}

impl<'a> Handshake<'a> {
    pub(crate) fn new(server: &'a Shared, stream: Arc<dyn Stream>) -> Self {
        let now = Instant::now();
        let until = now.checked_add(server.limits.handshake).unwrap_or(now);
        Self { server, stream, until, state: State::default(), out: Vec::new() }
    }

    /// Speaks with the client until it chooses an export or leaves.
    pub(crate) fn run(mut self) -> Result<End, Cut> {
        self.greet()?;
        for _ in 0..OPTIONS_MAX {
            let mut head = [0; OPTION_BYTES];
            if !fill(self.stream.as_ref(), &mut head, Some(self.until))? {
                return Ok(End::Left);
            }
            let next = self.option(&head)?;
            send(self.stream.as_ref(), &self.out, &[])?;
            self.out.clear();
            match next {
                Next::Option => {}
                Next::Secure => self.secure()?,
                Next::Leave => return Ok(End::Left),
                Next::Go(export) => {
                    let session = self.session(export);
                    self.stream.limit(None)?;
                    return Ok(End::Go(Box::new(session), self.stream));
                }
            }
        }
        Err(Cut::Broken("too many options"))
    }

    fn greet(&mut self) -> Result<(), Cut> {
        let ours = HandshakeFlags::all();
        self.out.put64(INIT_MAGIC);
        self.out.put64(OPTION_MAGIC);
        self.out.put16(ours.bits());
        send(self.stream.as_ref(), &self.out, &[])?;
        self.out.clear();
        let mut theirs = [0; 4];
        if !fill(self.stream.as_ref(), &mut theirs, Some(self.until))? {
            return Err(Cut::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let theirs = u32::from_be_bytes(theirs);
        let known = u16::try_from(theirs).ok().and_then(HandshakeFlags::from_bits);
        let known = known.ok_or(Cut::Broken("unknown client flags"))?;
        self.state.no_zeroes = known.contains(HandshakeFlags::NO_ZEROES);
        Ok(())
    }

    /// Begins TLS. Nothing that was agreed on before holds any more.
    fn secure(&mut self) -> Result<(), Cut> {
        let tls = self.server.tls.as_ref().ok_or(Cut::Broken("this server has no TLS"))?;
        self.stream = Arc::new(tls.accept(Arc::clone(&self.stream), self.until)?);
        self.state = State { secure: true, no_zeroes: self.state.no_zeroes, ..State::default() };
        Ok(())
    }

    fn session(&mut self, export: Arc<Export>) -> Session {
        let selected = self.state.selected.take().filter(|(name, _)| self.is_name_of(name, &export));
        let numbers = selected.map(|(_, numbers)| numbers).unwrap_or_default();
        let contexts = numbers.iter().filter_map(|n| {
            let index = usize::try_from(*n).ok()?.checked_sub(1)?;
            export.contexts().get(index).map(|c| (*n, Arc::clone(c)))
        });
        let contexts: Vec<_> = contexts.collect();
        let flags = self.flags(&export, !contexts.is_empty());
        Session { replies: self.state.replies, contexts, flags, export }
    }

    /// Whether both names mean that export; the empty name is another one for it.
    fn is_name_of(&self, name: &[u8], export: &Arc<Export>) -> bool {
        self.server.find(name).is_some_and(|found| Arc::ptr_eq(&found, export))
    }

    fn flags(&self, export: &Export, has_contexts: bool) -> ExportFlags {
        let mut flags = export.flags();
        flags.set(ExportFlags::SEND_DF, self.state.replies != Replies::Simple);
        let is_extended = self.state.replies == Replies::Extended;
        flags.set(ExportFlags::BLOCK_STATUS_PAYLOAD, is_extended && has_contexts);
        flags
    }

    /// Reads and answers one option.
    fn option(&mut self, head: &[u8; OPTION_BYTES]) -> Result<Next, Cut> {
        let mut fields = Fields(head);
        let (magic, option, len) = (fields.u64(), fields.u32(), fields.u32());
        let (Some(OPTION_MAGIC), Some(option), Some(len)) = (magic, option, len) else {
            return Err(Cut::Broken("no option where one was expected"));
        };
        if len > OPTION_BYTES_MAX {
            return self.too_long(option, len);
        }
        let mut data = vec![0; usize::try_from(len).unwrap_or_default()];
        if !data.is_empty() && !fill(self.stream.as_ref(), &mut data, Some(self.until))? {
            return Err(Cut::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        if self.server.is_stopping() && option != option::ABORT {
            if option == option::EXPORT_NAME {
                return Err(Cut::Broken("the server is shutting down"));
            }
            return Ok(self.refuse(option, reply::ERR_SHUTDOWN, "the server is shutting down"));
        }
        if self.server.tls.as_ref().is_some_and(Tls::is_required) && !self.state.secure {
            match option {
                option::ABORT | option::STARTTLS => {}
                option::EXPORT_NAME => return Err(Cut::Broken("an export was asked for without TLS")),
                _ => return Ok(self.refuse(option, reply::ERR_TLS_REQD, "begin TLS first")),
            }
        }
        self.answer(option, &data)
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> Result<Next, Cut> {
        Ok(match option {
            option::EXPORT_NAME => return self.export_name(data),
            option::ABORT => {
                self.put(option, reply::ACK, &[]);
                Next::Leave
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS | option::STARTTLS
                if !data.is_empty() =>
            {
                self.refuse(option, reply::ERR_INVALID, "this option carries no data")
            }
            option::LIST => self.list(),
            option::STARTTLS => self.start_tls(),
            option::INFO | option::GO => self.info(option, data),
            option::STRUCTURED_REPLY if self.state.replies == Replies::Extended => {
                self.refuse(option, reply::ERR_EXT_HEADER_REQD, "extended headers are in use")
            }
            option::STRUCTURED_REPLY => {
                self.state.replies = Replies::Structured;
                self.accept(option)
            }
            option::EXTENDED_HEADERS => {
                self.state.replies = Replies::Extended;
                self.accept(option)
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data),
            _ => self.refuse(option, reply::ERR_UNSUP, "this option is not known"),
        })
    }

    /// Reads past an option that is longer than any that makes sense.
    fn too_long(&mut self, option: u32, len: u32) -> Result<Next, Cut> {
        if len > OPTION_DRAIN_MAX || option == option::EXPORT_NAME {
            return Err(Cut::Broken("an option is too long"));
        }
        if option == option::SET_META_CONTEXT {
            self.state.selected = None;
        }
        let mut left = usize::try_from(len).unwrap_or_default();
        let mut scratch = vec![0; 4096];
        while left > 0 {
            let now = left.min(scratch.len());
            if !fill(self.stream.as_ref(), scratch.get_mut(..now).unwrap_or_default(), Some(self.until))? {
                return Err(Cut::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            left = left.saturating_sub(now);
        }
        Ok(self.refuse(option, reply::ERR_TOO_BIG, "the option is too long"))
    }

    fn put(&mut self, option: u32, kind: u32, data: &[u8]) {
        put_option_reply(&mut self.out, option, kind, data);
    }

    fn accept(&mut self, option: u32) -> Next {
        self.put(option, reply::ACK, &[]);
        Next::Option
    }

    fn refuse(&mut self, option: u32, kind: u32, why: &str) -> Next {
        self.put(option, kind, why.as_bytes());
        Next::Option
    }

    fn start_tls(&mut self) -> Next {
        if self.state.secure {
            return self.refuse(option::STARTTLS, reply::ERR_INVALID, "TLS is in use");
        }
        if self.server.tls.is_none() {
            return self.refuse(option::STARTTLS, reply::ERR_POLICY, "this server has no TLS");
        }
        self.put(option::STARTTLS, reply::ACK, &[]);
        Next::Secure
    }

    fn list(&mut self) -> Next {
        for export in self.server.exports() {
            let mut data = Vec::new();
            put_string(&mut data, export.name().as_bytes());
            data.extend_from_slice(export.description().as_bytes());
            put_option_reply(&mut self.out, option::LIST, reply::SERVER, &data);
        }
        self.accept(option::LIST)
    }

    fn export_name(&mut self, name: &[u8]) -> Result<Next, Cut> {
        if self.state.replies == Replies::Extended {
            return Err(Cut::Broken("an export was asked for by name in spite of extended headers"));
        }
        let export = self.server.find(name).ok_or(Cut::Broken("there is no export of that name"))?;
        self.out.put64(export.disk().size());
        let flags = self.flags(&export, false);
        self.out.put16(flags.bits());
        if !self.state.no_zeroes {
            self.out.extend_from_slice(&ZEROES);
        }
        Ok(Next::Go(export))
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Next {
        let Some((name, wanted)) = parse_info(data) else {
            return self.refuse(option, reply::ERR_INVALID, "the question makes no sense");
        };
        if name.len() > NAME_BYTES_MAX {
            return self.refuse(option, reply::ERR_TOO_BIG, "the name is too long");
        }
        let Some(export) = self.server.find(name) else {
            return self.refuse(option, reply::ERR_UNKNOWN, "there is no export of that name");
        };
        let has_contexts = self
            .state
            .selected
            .as_ref()
            .is_some_and(|(name, numbers)| !numbers.is_empty() && self.is_name_of(name, &export));
        let flags = self.flags(&export, has_contexts);
        let mut data = Vec::new();
        data.put16(info::EXPORT);
        data.put64(export.disk().size());
        data.put16(flags.bits());
        self.put(option, reply::INFO, &data);
        for (kind, text) in [(info::NAME, export.name()), (info::DESCRIPTION, export.description())] {
            if wanted.contains(&kind) && !(kind == info::DESCRIPTION && text.is_empty()) {
                let mut data = Vec::new();
                data.put16(kind);
                data.extend_from_slice(text.as_bytes());
                self.put(option, reply::INFO, &data);
            }
        }
        // Unasked as well: clients that do not ask are held to the largest payload like all others.
        let mut data = Vec::new();
        data.put16(info::BLOCK_SIZE);
        data.put32(1);
        data.put32(export.preferred());
        data.put32(PAYLOAD_MAX);
        self.put(option, reply::INFO, &data);
        self.put(option, reply::ACK, &[]);
        if option == option::GO { Next::Go(export) } else { Next::Option }
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Next {
        let is_set = option == option::SET_META_CONTEXT;
        if is_set {
            self.state.selected = None;
        }
        if self.state.replies == Replies::Simple {
            return self.refuse(option, reply::ERR_INVALID, "structured replies or extended headers first");
        }
        let Some((name, queries)) = parse_queries(data) else {
            return self.refuse(option, reply::ERR_INVALID, "the question makes no sense");
        };
        if name.len() > NAME_BYTES_MAX || queries.iter().any(|q| q.len() > NAME_BYTES_MAX) {
            return self.refuse(option, reply::ERR_TOO_BIG, "a name is too long");
        }
        let Some(export) = self.server.find(name) else {
            return self.refuse(option, reply::ERR_UNKNOWN, "there is no export of that name");
        };
        let mut numbers = Vec::new();
        for (number, context) in (1u32..).zip(export.contexts()) {
            let name = context.name().as_bytes();
            let is_meant = if is_set {
                queries.contains(&name)
            } else {
                queries.is_empty() || queries.iter().any(|q| is_found(q, name))
            };
            if !is_meant {
                continue;
            }
            if numbers.len() >= CONTEXTS_MAX {
                return self.refuse(option, reply::ERR_TOO_BIG, "too many contexts");
            }
            numbers.push(number);
            let mut data = Vec::new();
            data.put32(if is_set { number } else { 0 });
            data.extend_from_slice(name);
            put_option_reply(&mut self.out, option, reply::META_CONTEXT, &data);
        }
        if is_set {
            self.state.selected = Some((name.to_vec(), numbers));
        }
        self.accept(option)
    }
}

/// Whether a question for contexts finds the one of this name: it is the name, or a namespace (`base:`, `qemu:`,
/// `qemu:dirty-bitmap:`) that the name lies in.
fn is_found(query: &[u8], name: &[u8]) -> bool {
    query == name || (query.last() == Some(&b':') && name.starts_with(query))
}

/// The name and the kinds of information of `INFO` and `GO`.
fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let kinds = (0..count).map(|_| fields.u16()).collect::<Option<Vec<u16>>>()?;
    fields.is_done().then_some((name, kinds))
}

/// The name and the questions of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
fn parse_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    // Each takes four bytes, so that the data's own length limits them.
    let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<&[u8]>>>()?;
    fields.is_done().then_some((name, queries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_fill_their_option_exactly() {
        assert_eq!(parse_info(&[0, 0, 0, 1, b'a', 0, 1, 0, 3]), Some((b"a".as_slice(), vec![3])));
        assert_eq!(parse_info(&[0, 0, 0, 1, b'a', 0, 1, 0, 3, 0]), None);
        assert_eq!(parse_info(&[0, 0, 0, 9, b'a', 0, 0]), None);
        assert_eq!(parse_info(&[0, 0, 0, 0, 0, 2, 0, 1]), None);
        assert_eq!(parse_queries(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(parse_queries(&[0, 0, 0, 0, 0, 0, 0, 0]), Some((b"".as_slice(), vec![])));
    }

    #[test]
    fn namespaces_find_what_is_in_them() {
        assert!(is_found(b"base:", b"base:allocation"));
        assert!(is_found(b"qemu:dirty-bitmap:", b"qemu:dirty-bitmap:b"));
        assert!(!is_found(b"base", b"base:allocation"));
        assert!(!is_found(b"qemu:", b"base:allocation"));
        assert!(!is_found(b"", b"base:allocation"));
    }
}
