use proptest::prelude::*;

use super::*;

fn micros(text: &str) -> i64 {
    text.parse::<Timestamp>().expect("time").as_microsecond()
}

/// In 2010 clocks of Newfoundland went from 00:01 back to 23:01 of the day before.
#[test]
fn a_day_does_not_begin_again_when_a_clock_is_put_back_across_midnight() {
    let zone = TimeZone::get("America/St_Johns").expect("zone");
    let repeated = LocalDay::of(micros("2010-11-07T02:40:00Z"), &zone);
    assert_eq!(repeated.start, micros("2010-11-07T02:30:00Z"));
    assert_eq!(repeated.end, micros("2010-11-08T03:30:00Z"));
    assert_eq!(repeated, LocalDay::of(micros("2010-11-07T02:30:30Z"), &zone));
}

proptest! {
    /// Whatever is asked for first, each instant lies in its day and days do not overlap.
    #[test]
    fn calendars_cut_time_into_days(
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/St_Johns", "America/Havana", "Africa/Cairo", "Asia/Kathmandu", "Pacific/Apia",
        ]),
        from in 0i64..1_800_000_000,
        hours in prop::collection::vec(0i64..24 * 60, 1..50),
    ) {
        let mut calendar = Calendar::new(TimeZone::get(zone).expect("zone"));
        for hour in hours {
            let instant = (from + hour * 3600) * 1_000_000;
            let day = calendar.day_of(instant);
            prop_assert!(day.start <= instant && instant < day.end, "{day:?}");
            prop_assert_eq!(day, LocalDay::of(instant, &calendar.zone));
        }
        prop_assert!(calendar.days.is_sorted_by(|a, b| a.end <= b.start), "{:?}", calendar.days);
    }
}
