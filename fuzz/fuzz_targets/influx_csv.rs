#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wattlake_fuzz::decode_target("influx_csv", bytes));
