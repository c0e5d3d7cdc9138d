//! Protection of deletions against a wall clock that jumps: a date that is wrong by a year must not cost a year of data.
//!
//! Between two rounds the wall clock should move as much as the monotonic one. When it does not, nothing is deleted for a
//! day, so that somebody can look; an operator may go on at once.

use std::time::Duration;

/// Difference between the two clocks, or step back across a restart, that counts as a jump.
const JUMP: i64 = 10 * 60 * 1_000_000;
/// A process that starts so long after the last round cannot know whether it was off or the clock jumped.
const ABSENCE_MAX: i64 = 7 * 86_400 * 1_000_000;
/// How long deletions rest after a jump, by the monotonic clock.
const REST: Duration = Duration::from_secs(24 * 3600);
/// 2020-01-01T00:00:00Z: a machine without a clock starts in 1970.
const EARLIEST: i64 = 1_577_836_800_000_000;

/// Times of the wall are microseconds since 1970 UTC, monotonic ones are since the start of the process.
#[derive(Clone, Debug)]
pub(crate) struct ClockGuard {
    wall: i64,
    monotonic: Duration,
    rests: Option<(Duration, String)>,
}

impl ClockGuard {
    /// `seen` is the wall clock at the last round of an earlier process, 0 when there was none.
    pub(crate) fn new(seen: i64, wall: i64, monotonic: Duration) -> Self {
        let days = (wall - seen) / 86_400_000_000;
        let reason = if seen == 0 {
            None
        } else if wall < seen - JUMP {
            Some("the clock is behind the time of the last maintenance".to_owned())
        } else if wall > seen + ABSENCE_MAX {
            Some(format!("the last maintenance was {days} days ago, or the clock jumped"))
        } else {
            None
        };
        let rests = reason.map(|reason| (monotonic + REST, reason));
        Self { wall, monotonic, rests }
    }

    /// Notes the time of a round; says why nothing may be deleted in it, if so.
    pub(crate) fn tick(&mut self, wall: i64, monotonic: Duration) -> Option<String> {
        let elapsed = monotonic.saturating_sub(self.monotonic).as_micros() as i64;
        let drift = (wall - self.wall) - elapsed;
        (self.wall, self.monotonic) = (wall, monotonic);
        if drift.abs() > JUMP {
            let (way, minutes) = (if drift > 0 { "forward" } else { "back" }, drift.abs() / 60_000_000);
            self.rests = Some((monotonic + REST, format!("the clock jumped {way} by {minutes} minutes")));
        }
        if wall < EARLIEST {
            return Some("the clock shows a time before 2020".to_owned());
        }
        match &self.rests {
            Some((until, reason)) if monotonic < *until => {
                Some(format!("{reason}; nothing is deleted for a day, or until it is forced"))
            }
            _ => {
                self.rests = None;
                None
            }
        }
    }

    /// An operator says that the clock is right.
    pub(crate) fn force(&mut self) {
        self.rests = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_772_323_200_000_000;
    const MINUTE: i64 = 60_000_000;

    fn at(minutes: i64) -> Duration {
        Duration::from_micros((minutes * MINUTE) as u64)
    }

    #[test]
    fn steady_clocks_and_small_corrections_are_fine() {
        let mut guard = ClockGuard::new(NOW - 60 * MINUTE, NOW, at(0));
        assert_eq!(guard.tick(NOW + MINUTE, at(1)), None);
        assert_eq!(guard.tick(NOW + 2 * MINUTE + 500_000, at(2)), None);
        assert_eq!(guard.tick(NOW + 11 * MINUTE, at(3)), None, "nine minutes");
    }

    #[test]
    fn jumps_stop_deletions_for_a_day() {
        for (jump, way) in [(30 * 1440, "forward"), (-60, "back"), (-1440, "back")] {
            let mut guard = ClockGuard::new(NOW, NOW, at(0));
            let reason = guard.tick(NOW + (jump + 1) * MINUTE, at(1)).expect("rests");
            assert!(reason.contains(way), "{reason}");
            assert!(guard.tick(NOW + (jump + 1000) * MINUTE, at(1000)).is_some(), "still resting");
            let mut forced = guard.clone();
            forced.force();
            assert_eq!(forced.tick(NOW + (jump + 1001) * MINUTE, at(1001)), None);
            assert_eq!(guard.tick(NOW + (jump + 1442) * MINUTE, at(1442)), None, "after a day");
        }
    }

    #[test]
    fn a_jump_across_a_restart_is_noticed() {
        assert!(ClockGuard::new(NOW, NOW - 60 * MINUTE, at(0)).tick(NOW - 60 * MINUTE, at(0)).is_some());
        assert!(
            ClockGuard::new(NOW, NOW + 30 * 1440 * MINUTE, at(0))
                .tick(NOW + 30 * 1440 * MINUTE, at(0))
                .is_some()
        );
        assert_eq!(ClockGuard::new(0, NOW, at(0)).tick(NOW, at(0)), None, "the first start");
    }

    #[test]
    fn a_machine_without_a_clock_deletes_nothing() {
        let mut guard = ClockGuard::new(0, 1_000_000, at(0));
        assert!(guard.tick(2_000_000, at(0)).is_some());
        guard.force();
        assert!(guard.tick(3_000_000, at(0)).is_some(), "not even when it is forced");
    }
}
