//! What fuzzers have found stays found: every file of their corpora is decoded without a panic.

#[expect(unreachable_pub, reason = "it is a crate of its own where fuzzers use it")]
#[path = "../../fuzz/src/lib.rs"]
mod decoders;

#[test]
fn corpora_are_decoded() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
    let mut count = 0;
    for target in std::fs::read_dir(folder).expect("the corpora") {
        let target = target.expect("a corpus");
        for file in std::fs::read_dir(target.path()).expect("a corpus") {
            let path = file.expect("a file").path();
            let bytes = std::fs::read(&path).expect("a file");
            decoders::decode_target(&target.file_name().to_string_lossy(), &bytes);
            // Cut off anywhere, it is no reason to fall over either.
            for end in (0..bytes.len()).step_by(bytes.len().div_ceil(64).max(1)) {
                decoders::decode_target(&target.file_name().to_string_lossy(), &bytes[..end]);
            }
            count += 1;
        }
    }
    assert!(count >= 19, "{count} files");
}
