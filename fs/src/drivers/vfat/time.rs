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
    let before = DAYS_BEFORE.get(month.saturating_sub(1)).copied().unwrap_or(0);
    let days = DAYS_TO_1980
        .saturating_add(year.saturating_mul(365))
        .saturating_add(leap_days)
        .saturating_add(before)
        .saturating_add(i64::from(is_leap(year) && month > 2))
        .saturating_add(day.saturating_sub(1));
    let of_day = i64::from(time >> 11)
        .saturating_mul(3600)
        .saturating_add(i64::from((time >> 5) & 0x3f).saturating_mul(60))
        .saturating_add(i64::from(time & 0x1f).saturating_mul(2))
        .saturating_add(i64::from(hundredths / 100));
    let nsec = u32::from(hundredths % 100).saturating_mul(10_000_000);
    Time { sec: days.saturating_mul(86400).saturating_add(of_day), nsec }
}

/// Seconds of a day.
const DAY: i64 = 86400;
/// The last second that a date can tell: the end of 2107.
const LAST: i64 = 4_354_819_199;

/// A time as the format stores it: date, time of day in steps of two seconds, and hundredths of a second beyond. What
/// it cannot tell is the nearest that it can.
pub(super) fn stored(time: Time) -> (u16, u16, u8) {
    let first = DAYS_TO_1980.saturating_mul(DAY);
    let sec = time.sec.clamp(first, LAST);
    let nsec = if sec == time.sec { time.nsec } else { 0 };
    let (mut days, of_day) = (sec.div_euclid(DAY).saturating_sub(DAYS_TO_1980), sec.rem_euclid(DAY));
    let mut year = 0i64;
    loop {
        let length = 365i64.saturating_add(i64::from(is_leap(year)));
        if days < length {
            break;
        }
        days = days.saturating_sub(length);
        year = year.saturating_add(1);
    }
    let start = |month: usize| {
        let before = DAYS_BEFORE.get(month).copied().unwrap_or(i64::MAX);
        before.saturating_add(i64::from(is_leap(year) && month > 1))
    };
    let month = (0..12).rposition(|month| start(month) <= days).unwrap_or(0);
    let day = days.saturating_sub(start(month)).saturating_add(1);
    let narrow = |n: i64| u16::try_from(n).unwrap_or(0);
    let month = u16::try_from(month).unwrap_or(0).saturating_add(1);
    let date = narrow(year) << 9 | month << 5 | narrow(day);
    let (hours, rest) = (of_day.div_euclid(3600), of_day.rem_euclid(3600));
    let (minutes, seconds) = (rest.div_euclid(60), rest.rem_euclid(60));
    let clock = narrow(hours) << 11 | narrow(minutes) << 5 | narrow(seconds.div_euclid(2));
    let hundredths = u8::try_from(nsec / 10_000_000).unwrap_or(99);
    (date, clock, hundredths.saturating_add(if seconds % 2 == 1 { 100 } else { 0 }))
}

/// Whether a year, counted from 1980, is a leap year.
const fn is_leap(year: i64) -> bool {
    year.rem_euclid(4) == 0 && year != 120
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
        for sec in (315_532_800..4_354_819_200i64).step_by(86_400 * 3 + 12_345) {
            let (date, clock, hundredths) = stored(Time { sec, nsec: 120_000_000 });
            assert_eq!(time(date, clock, hundredths), Time { sec, nsec: 120_000_000 });
        }
        let told = |sec| {
            time(
                stored(Time { sec, nsec: 5 }).0,
                stored(Time { sec, nsec: 5 }).1,
                stored(Time { sec, nsec: 5 }).2,
            )
            .sec
        };
        assert_eq!((told(-5), told(1 << 40)), (315_532_800, 4_354_819_199));
        assert_eq!(time(0, 0, 150), Time { sec: 315_532_801, nsec: 500_000_000 });
    }
}
