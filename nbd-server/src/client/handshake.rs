//! The client's side of the handshake: fixed newstyle.
//!
//! Frames are read to their exact length and nothing is read ahead, so that what a stranger says before TLS begins can
//! never be taken for something that came through it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::fault::{ClientFault, refusal};
use super::limits::{
    ANSWER_BYTES_MAX, ANSWERS_MAX, BLOCK_BYTES_MAX, OFFERED_MAX, PAYLOAD_DEFAULT, SIZE_MAX, TEXT_CHARS_MAX,
};
use super::tls::ClientTls;
use crate::handshake::Replies;
use crate::stream::{Stream, fill, send};
use crate::wire::{
    EXPORT_NAME_ZEROES, ExportFlags, Fields, HandshakeFlags, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_BYTES,
    OPTION_REPLY_MAGIC, Put, info, option, put_option, put_string, reply,
};

/// The metadata context that tells data from holes.
const ALLOCATION: &[u8] = b"base:allocation";
/// What an answer to an option may not be above: an error.
const ERRORS: u32 = 1 << 31;

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    pub(super) flags: ExportFlags,
    pub(super) replies: Replies,
    /// The number of `base:allocation`.
    pub(super) context: Option<u32>,
    /// Requests are made of so many bytes: a power of two.
    pub(super) block: u32,
    /// The size of request that the server likes best.
    pub(super) preferred: u32,
    /// Bytes of payload in one request, at most: a multiple of `block`.
    pub(super) most: u32,
}

/// Who asks, and for what.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) export: String,
    pub(super) tls: Option<ClientTls>,
}

type Faulty<T> = Result<T, ClientFault>;

/// One handshake.
struct Talk {
    stream: Arc<dyn Stream>,
    until: Instant,
    no_zeroes: bool,
}

/// An answer to an option.
struct Answer {
    kind: u32,
    data: Vec<u8>,
}

/// Speaks with a server until it serves the export that is wished for.
pub(super) fn shake_hands(
    stream: Arc<dyn Stream>,
    wish: &Wish,
    until: Instant,
) -> Faulty<(Terms, Arc<dyn Stream>)> {
    let mut talk = Talk { stream, until, no_zeroes: false };
    talk.greet()?;
    if let Some(tls) = &wish.tls {
        talk.secure(tls)?;
    }
    let replies = if talk.agrees(option::EXTENDED_HEADERS)? {
        Replies::Extended
    } else if talk.agrees(option::STRUCTURED_REPLY)? {
        Replies::Structured
    } else {
        Replies::Simple
    };
    let context = if replies == Replies::Simple { None } else { talk.allocation(&wish.export)? };
    let terms = talk.go(&wish.export)?;
    let stream = talk.stream;
    Ok((Terms { replies, context, ..terms.checked()? }, stream))
}

impl Terms {
    fn new(size: u64, flags: u16) -> Self {
        Self {
            size,
            // Without the flag that says that there are flags, there are none.
            flags: match ExportFlags::from_bits_truncate(flags) {
                flags if flags.contains(ExportFlags::HAS_FLAGS) => flags,
                _ => ExportFlags::HAS_FLAGS,
            },
            replies: Replies::Simple,
            context: None,
            block: 1,
            preferred: 4096,
            most: PAYLOAD_DEFAULT,
        }
    }

    /// Sees that the numbers make sense.
    fn checked(self) -> Faulty<Self> {
        let Self { size, block, preferred, most, .. } = self;
        if size > SIZE_MAX {
            return Err(ClientFault::Disk(format!("has {size} bytes, which no disk can have")));
        }
        if !block.is_power_of_two() || block > BLOCK_BYTES_MAX {
            return Err(ClientFault::Disk(format!("has blocks of {block} bytes")));
        }
        if !preferred.is_power_of_two() || preferred < block || most < block {
            let what = format!("has blocks of {block} bytes, {preferred} preferred and {most} at most");
            return Err(ClientFault::Disk(what));
        }
        let unit = u64::from(block);
        if size.checked_rem(unit) != Some(0) {
            return Err(ClientFault::Disk(format!("has {size} bytes, in blocks of {block}")));
        }
        let most = most.saturating_sub(most.checked_rem(block).unwrap_or(0));
        Ok(Self { most, ..self })
    }
}

impl Talk {
    fn fill(&self, buf: &mut [u8]) -> Faulty<()> {
        match fill(self.stream.as_ref(), buf, Some(self.until)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(ClientFault::Ended),
            Err(e) => Err(slow(&e)),
        }
    }

    fn send(&self, bytes: &[u8]) -> Faulty<()> {
        send(self.stream.as_ref(), bytes, &[]).map_err(|e| slow(&e))
    }

    fn greet(&mut self) -> Faulty<()> {
        let mut first = [0; 16];
        self.fill(&mut first)?;
        let mut fields = Fields(&first);
        if fields.u64() != Some(INIT_MAGIC) {
            return Err(ClientFault::NotNbd);
        }
        if fields.u64() != Some(OPTION_MAGIC) {
            return Err(ClientFault::Old);
        }
        let mut theirs = [0; 2];
        self.fill(&mut theirs)?;
        let theirs = HandshakeFlags::from_bits_truncate(u16::from_be_bytes(theirs));
        if !theirs.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            return Err(ClientFault::Old);
        }
        self.no_zeroes = theirs.contains(HandshakeFlags::NO_ZEROES);
        self.send(&u32::from(theirs.bits()).to_be_bytes())
    }

    /// Sends an option.
    fn ask(&self, option: u32, data: &[u8]) -> Faulty<()> {
        let mut out = Vec::new();
        put_option(&mut out, option, data);
        self.send(&out)
    }

    /// The next answer to an option.
    fn answer(&self, option: u32) -> Faulty<Answer> {
        let mut head = [0; OPTION_REPLY_BYTES];
        self.fill(&mut head)?;
        let mut fields = Fields(&head);
        let (magic, which, kind, len) = (fields.u64(), fields.u32(), fields.u32(), fields.u32());
        let (Some(OPTION_REPLY_MAGIC), Some(kind), Some(len)) = (magic, kind, len) else {
            return Err(ClientFault::Broken("no answer to an option where one was expected"));
        };
        if which != Some(option) {
            return Err(ClientFault::Broken("an answer to an option that was not asked"));
        }
        if len > ANSWER_BYTES_MAX {
            return Err(ClientFault::Broken("an answer to an option is too long"));
        }
        let mut data = vec![0; usize::try_from(len).unwrap_or_default()];
        if !data.is_empty() {
            self.fill(&mut data)?;
        }
        if kind == reply::ERR_TLS_REQD {
            return Err(ClientFault::TlsRequired);
        }
        Ok(Answer { kind, data })
    }

    /// Asks for TLS. What comes before it is there counts for nothing afterwards.
    fn secure(&mut self, tls: &ClientTls) -> Faulty<()> {
        self.ask(option::STARTTLS, &[])?;
        let answer = self.answer(option::STARTTLS)?;
        if answer.kind != reply::ACK {
            return Err(ClientFault::NoTls(answer.why()));
        }
        self.stream = tls.begin(Arc::clone(&self.stream), self.until)?;
        Ok(())
    }

    /// Whether the server agrees to an option without data.
    fn agrees(&self, option: u32) -> Faulty<bool> {
        self.ask(option, &[])?;
        let Answer { kind, .. } = self.answer(option)?;
        match kind {
            reply::ACK => Ok(true),
            kind if kind & ERRORS != 0 => Ok(false),
            _ => Err(ClientFault::Broken("an answer that is neither yes nor no")),
        }
    }

    /// Asks what tells data from holes.
    fn allocation(&self, export: &str) -> Faulty<Option<u32>> {
        let mut data = Vec::new();
        put_string(&mut data, export.as_bytes());
        data.put32(1);
        put_string(&mut data, ALLOCATION);
        self.ask(option::SET_META_CONTEXT, &data)?;
        let mut found = None;
        for _ in 0..ANSWERS_MAX {
            let Answer { kind, data } = self.answer(option::SET_META_CONTEXT)?;
            match kind {
                reply::ACK => return Ok(found),
                reply::META_CONTEXT => {
                    let mut fields = Fields(&data);
                    let number = fields.u32();
                    if fields.0 == ALLOCATION {
                        found = number;
                    }
                }
                // Nothing is said of holes, then.
                kind if kind & ERRORS != 0 => return Ok(None),
                _ => return Err(ClientFault::Broken("an answer that is no metadata context")),
            }
        }
        Err(ClientFault::Broken("too many metadata contexts"))
    }

    /// Chooses the export.
    fn go(&self, export: &str) -> Faulty<Terms> {
        let mut data = Vec::new();
        put_string(&mut data, export.as_bytes());
        data.put16(1);
        data.put16(info::BLOCK_SIZE);
        self.ask(option::GO, &data)?;
        let (mut terms, mut sizes) = (None, None);
        for _ in 0..ANSWERS_MAX {
            let answer = self.answer(option::GO)?;
            match answer.kind {
                reply::ACK => {
                    let terms: Terms = terms.ok_or(ClientFault::Broken("an export without a size"))?;
                    let Some((block, preferred, most)) = sizes else { return Ok(terms) };
                    return Ok(Terms { block, preferred, most, ..terms });
                }
                reply::INFO => {
                    let mut fields = Fields(&answer.data);
                    let kind = fields.u16().ok_or(ClientFault::Broken("a fact of no kind"))?;
                    let short = ClientFault::Broken("a fact that ends early");
                    match kind {
                        info::EXPORT => {
                            let (size, flags) = fields.u64().zip(fields.u16()).ok_or(short)?;
                            terms = Some(Terms::new(size, flags));
                        }
                        info::BLOCK_SIZE => {
                            let mut next = || fields.u32().ok_or(short.clone());
                            sizes = Some((next()?.max(1), next()?, next()?));
                        }
                        _ => {}
                    }
                }
                reply::ERR_UNSUP => return self.export_name(export),
                reply::ERR_UNKNOWN => {
                    let offered = self.offered().unwrap_or_default();
                    return Err(ClientFault::NoExport { name: export.into(), offered });
                }
                kind if kind & ERRORS != 0 => {
                    return Err(ClientFault::Refused { what: "the export", why: answer.why() });
                }
                _ => return Err(ClientFault::Broken("an answer that is no fact of an export")),
            }
        }
        Err(ClientFault::Broken("too many facts of an export"))
    }

    /// Chooses the export as servers of before 2017 have it, which just hang up where there is none.
    fn export_name(&self, export: &str) -> Faulty<Terms> {
        self.ask(option::EXPORT_NAME, export.as_bytes())?;
        let mut facts = [0; 10];
        match self.fill(&mut facts) {
            Err(ClientFault::Ended) => {
                return Err(ClientFault::NoExport { name: export.into(), offered: Vec::new() });
            }
            filled => filled?,
        }
        if !self.no_zeroes {
            self.fill(&mut [0; EXPORT_NAME_ZEROES])?;
        }
        let mut fields = Fields(&facts);
        let (size, flags) = (fields.u64().unwrap_or_default(), fields.u16().unwrap_or_default());
        Ok(Terms::new(size, flags))
    }

    /// Names of some exports.
    fn offered(&self) -> Faulty<Vec<String>> {
        self.ask(option::LIST, &[])?;
        let mut all = Vec::new();
        for _ in 0..ANSWERS_MAX {
            let Answer { kind, data } = self.answer(option::LIST)?;
            if kind != reply::SERVER {
                break;
            }
            if all.len() >= OFFERED_MAX {
                all.push("…".into());
                break;
            }
            let name = Fields(&data).string().unwrap_or_default();
            all.push(format!("{:?}", shown(name)));
        }
        Ok(all)
    }
}

impl Answer {
    /// Why the server refuses.
    fn why(&self) -> String {
        let (known, text) = (refusal(self.kind), shown(&self.data));
        if text.is_empty() { known.into() } else { format!("{known} ({text})") }
    }
}

/// A text of the server, cut to what people read.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut shown: String = text.chars().take(TEXT_CHARS_MAX).filter(|c| !c.is_control()).collect();
    if text.chars().nth(TEXT_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// A handshake that does not get on.
fn slow(e: &io::Error) -> ClientFault {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ClientFault::Io { text: "the server takes too long for the handshake".into() }
        }
        _ => ClientFault::io(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(size: u64, block: u32, preferred: u32, most: u32) -> Faulty<Terms> {
        Terms { block, preferred, most, ..Terms::new(size, 1) }.checked()
    }

    #[test]
    fn block_sizes_are_powers_of_two_that_fit_the_disk() {
        assert_eq!(terms(1 << 20, 512, 4096, u32::MAX).unwrap().most, u32::MAX - 511);
        assert!(terms(0, 1, 4096, 32 << 20).is_ok());
        for (size, block, preferred, most) in [
            (1 << 20, 3, 4096, 1 << 20),
            (1 << 20, 1 << 17, 1 << 17, 1 << 20),
            (1000, 512, 4096, 1 << 20),
            (1 << 20, 512, 256, 1 << 20),
            (1 << 20, 512, 4097, 1 << 20),
            (1 << 20, 4096, 4096, 512),
            (1 << 20, 1, 4096, 0),
            (1 << 63, 1, 4096, 1 << 20),
        ] {
            assert!(
                matches!(terms(size, block, preferred, most), Err(ClientFault::Disk(_))),
                "{size} {block}"
            );
        }
    }

    #[test]
    fn texts_are_cut_and_cleaned() {
        assert_eq!(shown(b"a\x1b[31mb\xff"), "a[31mb\u{fffd}");
        assert_eq!(shown(&[b'x'; 300]).chars().count(), TEXT_CHARS_MAX + 1);
    }
}
