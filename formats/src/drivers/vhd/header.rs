//! The dynamic disk header: bytes to a checked value, and back.

use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use super::fault::VhdFault;
use super::footer::{Footer, checksum};
use super::layout::{
    HEADER_BYTES, HEADER_COOKIE, MACX, NOWHERE, RawHeader, RawLocator, SECTOR, VERSION, W2KU, W2RU,
};
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Result, Within};
use crate::limits::{KIB, MIB};
use crate::wire::{bytes, len64, view};

/// 2040 GiB in blocks of 256 KiB, an eighth of what programs make.
pub(super) const BAT_BYTES_MAX: u64 = 32 * MIB;
/// Windows ends paths at 32,767 characters.
const LOCATOR_BYTES_MAX: u64 = 64 * KIB;
/// Blocks of new images: what every program makes.
pub(super) const BLOCK_BYTES: u64 = 2 * MIB;
/// Where the checksum stands in the header.
const CHECKSUM_AT: usize = 36;

/// A checked dynamic disk header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    raw: RawHeader,
    /// Where it lies.
    pub(super) at: u64,
    /// Data in a block.
    pub(super) block: BlockSize,
    /// Bytes of the bitmap before a block's data: whole sectors.
    pub(super) bitmap_bytes: u64,
    /// Where the BAT lies, in bytes of its entries.
    pub(super) bat: Span,
    /// Names of the parent.
    pub(super) locators: Vec<Locator>,
}

/// One way to find the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    pub(super) platform: [u8; 4],
    /// Where its text lies.
    pub(super) span: Span,
}

impl Header {
    /// Reads and checks the header that `footer` names.
    pub(super) fn read(file: &Disk, footer: &Footer) -> Result<Self> {
        let at = footer.header_at;
        let len = len64(HEADER_BYTES);
        if Span::new(at, len).is_ok_and(|s| s.end() <= file.size()) {
            let raw = bytes(file, at, len, len, "dynamic disk header")?;
            Self::parse(&raw, at, footer.size, file).within(|| "dynamic disk header")
        } else {
            Err(VhdFault::NoHeader(at).into())
        }
    }

    fn parse(sector: &[u8], at: u64, size: u64, file: &Disk) -> Result<Self> {
        let raw: &RawHeader = view(sector, "dynamic disk header")?;
        if raw.cookie != HEADER_COOKIE {
            return Err(VhdFault::NoHeader(at).into());
        }
        let (found, expected) = (raw.checksum.get(), checksum(raw.as_bytes(), CHECKSUM_AT));
        if found != expected {
            return Err(VhdFault::Checksum { what: "dynamic disk header", found, expected }.into());
        }
        let version = raw.header_version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(VhdFault::Version { what: "dynamic disk header", found: version }.into());
        }
        let bytes = raw.block_size.get();
        let block = BlockSize::from_bytes(bytes.into()).filter(|b| b.bytes() >= SECTOR);
        let block = block.ok_or(VhdFault::BlockSize(bytes))?;
        let entries = u64::from(raw.max_table_entries.get());
        let need = block.count(size);
        if entries < need {
            return Err(VhdFault::BatShort { found: entries, need, size }.into());
        }
        // 32 bits of entries of 4 bytes always fit.
        let (bat_at, len) = (raw.table_offset.get(), entries.saturating_mul(4));
        let outside = VhdFault::BatOutside { at: bat_at, len, file: file.size() };
        let bat = Span::new(bat_at, len).ok().filter(|s| s.end() <= file.size()).ok_or(outside)?;
        if len > BAT_BYTES_MAX {
            let what = "the block allocation table";
            return Err(crate::error::Common::TooLarge { what, need: len, max: BAT_BYTES_MAX }.into());
        }
        let locators = raw.parent_locators.iter().filter_map(Locator::of).collect();
        Ok(Self { raw: *raw, at, block, bitmap_bytes: bitmap_bytes(block), bat, locators })
    }

    /// The header of a new image, whose table lies at `bat`.
    pub(super) fn new(size: u64, bat_at: u64) -> Result<Self> {
        let mut raw = RawHeader::new_zeroed();
        raw.cookie = HEADER_COOKIE;
        raw.data_offset = NOWHERE.into();
        raw.header_version = VERSION.into();
        let block = BlockSize::from_bytes(BLOCK_BYTES).ok_or(VhdFault::BlockSize(0))?;
        raw.block_size = u32::try_from(BLOCK_BYTES).unwrap_or_default().into();
        let mut header = Self {
            raw,
            at: SECTOR,
            block,
            bitmap_bytes: bitmap_bytes(block),
            bat: Span::first(0),
            locators: Vec::new(),
        };
        header.place_bat(Span::new(bat_at, block.count(size).saturating_mul(4))?);
        Ok(header)
    }

    /// Says where the table lies from now on.
    pub(super) fn place_bat(&mut self, bat: Span) {
        self.bat = bat;
        self.raw.table_offset = bat.start().into();
        self.raw.max_table_entries = u32::try_from(bat.len() / 4).unwrap_or(u32::MAX).into();
        self.seal();
    }

    /// Names the parent, or none (a nil ID, no name): its ID, its time stamp, and the file's name in the fields of the header.
    pub(super) fn name_parent(&mut self, id: Uuid, time: u32, name: &str, locators: &[(Locator, u64)]) {
        self.raw.parent_unique_id = *id.as_bytes();
        self.raw.parent_time_stamp = time.into();
        self.raw.parent_unicode_name.fill(0);
        self.raw.parent_locators = <[RawLocator; 8]>::new_zeroed();
        let units = name.encode_utf16().flat_map(u16::to_be_bytes);
        // The last character stays zero.
        let room = self.raw.parent_unicode_name.iter_mut().take(510);
        room.zip(units).for_each(|(to, from)| *to = from);
        for (slot, (locator, space)) in self.raw.parent_locators.iter_mut().zip(locators) {
            slot.platform_code = locator.platform;
            slot.platform_data_space = u32::try_from(*space).unwrap_or_default().into();
            slot.platform_data_length = u32::try_from(locator.span.len()).unwrap_or_default().into();
            slot.platform_data_offset = locator.span.start().into();
        }
        self.locators = locators.iter().map(|(l, _)| l.clone()).collect();
        self.seal();
    }

    fn seal(&mut self) {
        self.raw.checksum = checksum(self.raw.as_bytes(), CHECKSUM_AT).into();
    }

    /// As it lies on disk.
    pub(super) fn bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    /// The unique ID that the parent must have.
    pub(super) fn parent_id(&self) -> Uuid {
        Uuid::from_bytes(self.raw.parent_unique_id)
    }

    /// The time stamp of the parent when the difference was begun.
    pub(super) fn parent_time(&self) -> u32 {
        self.raw.parent_time_stamp.get()
    }

    /// The parent's name in the header itself.
    pub(super) fn parent_name(&self) -> String {
        utf16(&self.raw.parent_unicode_name, u16::from_be_bytes)
    }
}

/// Bytes of the bitmap of a block: a bit for each sector, filled up to whole sectors.
fn bitmap_bytes(block: BlockSize) -> u64 {
    block.bytes().div_ceil(SECTOR.saturating_mul(8)).next_multiple_of(SECTOR)
}

impl Locator {
    fn of(raw: &RawLocator) -> Option<Self> {
        let len = u64::from(raw.platform_data_length.get());
        let span = Span::new(raw.platform_data_offset.get(), len).ok()?;
        let platform = raw.platform_code;
        (platform != [0; 4] && len > 0 && len <= LOCATOR_BYTES_MAX).then_some(Self { platform, span })
    }

    /// The path that the locator holds, with slashes; none for kinds that are not paths.
    pub(super) fn path(&self, file: &Disk) -> Result<Option<String>> {
        if self.span.end() > file.size() {
            return Ok(None);
        }
        let text = bytes(file, self.span.start(), self.span.len(), LOCATOR_BYTES_MAX, "parent locator")?;
        Ok(match self.platform {
            W2RU | W2KU => Some(utf16(&text, u16::from_le_bytes).replace('\\', "/")),
            MACX => {
                let text = String::from_utf8_lossy(&text);
                let text = text.trim_end_matches('\0');
                Some(text.strip_prefix("file://").unwrap_or(text).to_string())
            }
            _ => None,
        })
    }
}

/// UTF-16 up to the first zero.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units: Vec<u16> =
        bytes.as_chunks::<2>().0.iter().map(|pair| unit(*pair)).take_while(|u| *u != 0).collect();
    String::from_utf16_lossy(&units)
}
