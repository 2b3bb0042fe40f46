//! Each decoder is fed with its corpus and with seeded mutations of it; none panics, and what they decode reads back.

use keystore_fuzz::corpus;
use keystore_fuzz::run::{Broken, Run};
use keystore_fuzz::targets::{TARGETS, Target};

/// Enough to find what lies near the corpus; `keystore-fuzz` goes deep.
const STEPS: u32 = 8_000;

fn feed(target: Target, seed: u64) -> Result<usize, Broken> {
    let inputs =
        corpus::load(target).expect("the corpus reads").into_iter().map(|(_, input)| input).collect();
    let mut run = Run::new(target, inputs, seed)?;
    for _ in 0..STEPS {
        run.step()?;
    }
    Ok(run.signatures())
}

#[test]
fn no_decoder_panics_and_what_it_decodes_reads_back() {
    for target in TARGETS {
        match feed(target, 7) {
            Ok(signatures) => assert!(signatures >= 2, "{}: all inputs look the same", target.name),
            Err(Broken { input, message }) => {
                panic!("{}: {message}\ninput: {}", target.name, input.escape_ascii())
            }
        }
    }
}

#[test]
fn a_decoder_that_panics_is_noticed_with_its_input() {
    fn broken(input: &[u8]) -> String {
        assert!(input.first() != Some(&0xff), "the byte that must not be");
        format!("{:?}", input.first())
    }
    let target = Target { name: "broken", run: broken };
    let mut run = Run::new(target, vec![vec![1, 2, 3]], 1).unwrap_or_else(|_| panic!("the corpus is good"));
    let found = (0..100_000).find_map(|_| run.step().err());
    let Broken { input, message } = found.unwrap_or_else(|| panic!("never found"));
    assert_eq!(input.first(), Some(&0xff));
    assert!(message.contains("must not be"));
}

#[test]
fn each_target_has_a_corpus_that_decodes() {
    for target in TARGETS {
        let inputs = corpus::load(target).expect("the corpus reads");
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
    }
}
