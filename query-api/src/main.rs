//! The binary `wattlake`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Milliseconds that freed memory is kept before it goes back to the system. By default it goes within 10, and a server
/// that takes bodies of some hundred kilobytes all the time then spends an eighth of its CPU on clearing new pages.
const PURGE_DELAY_MS: std::ffi::c_long = 1000;
/// `mi_option_purge_delay` of mimalloc 2 and 3, which the bindings do not name.
const PURGE_DELAY: std::ffi::c_int = 15;

fn main() -> ExitCode {
    // Who set it in the environment knows better.
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        #[expect(unsafe_code, reason = "a setting of the allocator, which has no other interface")]
        // SAFETY: sets a number of the allocator before any other thread runs.
        unsafe {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_DELAY_MS);
        }
    }
    // Bodies and columns come and go in pieces far below two megabytes, each of which would be cleared as a whole. Without
    // that, a full server needs an eighth less CPU and a quarter less memory. Where it cannot be had, all works as well.
    if std::env::var_os("MIMALLOC_ALLOW_THP").is_none() {
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
    #[cfg(feature = "failpoints")]
    wattlake_catalog::failpoint::arm();
    wattlake_query_api::cli::main()
}
