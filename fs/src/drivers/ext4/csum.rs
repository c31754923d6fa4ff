//! The two checksums: crc32c of everything (`metadata_csum`), crc16 of group descriptors (the older `uninit_bg`).

/// Goes on with the crc32c register `seed`, which ext4 neither inverts before nor after.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// Goes on with the crc16 (polynomial 0x8005, reflected) `seed`.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 != 0 { 0xa001 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_catalogue() {
        // CRC-32/ISCSI and CRC-16/MODBUS of "123456789".
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc16(0xffff, b"123456789"), 0x4b37);
    }
}
