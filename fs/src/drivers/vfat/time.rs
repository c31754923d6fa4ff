//! Dates and times: local to wherever they were written, shown as UTC, as a mount without options does.

use crate::filesystem::Time;

/// Days before each month of a year that is no leap year.
const DAYS_BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
/// Days from 1970 to 1980.
const DAYS_TO_1980: i64 = 3652;

/// The time of a date, a time of day and hundredths of a second. Months and days that do not exist are taken to be
/// the nearest ones that do.
pub(super) fn time(date: u16, time: u16, hundredths: u8) -> Time {
    let year = i64::from(date >> 9);
    let month = usize::from((date >> 5) & 0xf).clamp(1, 12);
    let day = i64::from(date & 0x1f).max(1);
    // Every fourth year from 1980 on is a leap year but 2100, the 120th.
    let leap_days = year.saturating_add(3).div_euclid(4).saturating_sub(i64::from(year > 120));
    let is_leap = year % 4 == 0 && year != 120;
    let before = DAYS_BEFORE.get(month.saturating_sub(1)).copied().unwrap_or(0);
    let days = DAYS_TO_1980
        .saturating_add(year.saturating_mul(365))
        .saturating_add(leap_days)
        .saturating_add(before)
        .saturating_add(i64::from(is_leap && month > 2))
        .saturating_add(day.saturating_sub(1));
    let of_day = i64::from(time >> 11)
        .saturating_mul(3600)
        .saturating_add(i64::from((time >> 5) & 0x3f).saturating_mul(60))
        .saturating_add(i64::from(time & 0x1f).saturating_mul(2))
        .saturating_add(i64::from(hundredths / 100));
    let nsec = u32::from(hundredths % 100).saturating_mul(10_000_000);
    Time { sec: days.saturating_mul(86400).saturating_add(of_day), nsec }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |y: u16, m: u16, d: u16| (y - 1980) << 9 | m << 5 | d;
        assert_eq!(time(date(1980, 1, 1), 0, 0).sec, 315_532_800);
        assert_eq!(time(date(2000, 2, 29), 0, 0).sec, 951_782_400);
        assert_eq!(time(date(2000, 3, 1), 0, 0).sec, 951_868_800);
        assert_eq!(time(date(2100, 3, 1), 0, 0).sec, 4_107_542_400);
        assert_eq!(time(date(2107, 12, 31), 23 << 11 | 59 << 5 | 29, 199).sec, 4_354_819_199);
        assert_eq!(time(0, 0, 150), Time { sec: 315_532_801, nsec: 500_000_000 });
    }
}
