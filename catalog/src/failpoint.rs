//! Places where tests make the process die, faults of what it depends on, and bugs that are planted to prove that the tests would
//! notice.
//!
//! Without the feature `failpoints` nothing of it is compiled in. With it, the environment says which are on:
//! `FAILPOINTS="flush.before_catalog=2*off->return;bug.put_no_sync=return"` (crate `fail`). `return` is on; at a failpoint it ends the
//! whole process at once, as kill -9 does.

/// A place where the process may be made to die.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reach($name);
    };
}

/// Whether a planted bug or fault is on.
#[macro_export]
macro_rules! seeded_bug {
    ($name:literal) => {{
        #[cfg(feature = "failpoints")]
        let is_on = $crate::failpoint::is_on($name);
        #[cfg(not(feature = "failpoints"))]
        let is_on = false;
        is_on
    }};
}

#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub fn reach(name: &str) {
    // A task that panics would only fail one request.
    if fail::eval(name, |_| ()).is_some() {
        eprintln!("failpoint {name}: the process ends");
        std::process::abort();
    }
}

#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub fn is_on(name: &str) -> bool {
    fail::eval(name, |_| ()).is_some()
}

/// Reads `FAILPOINTS`.
#[cfg(feature = "failpoints")]
pub fn arm() {
    std::mem::forget(fail::FailScenario::setup());
}
