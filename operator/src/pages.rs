//! Checks that `docs/operations.md` speaks of everything the operator tells.

use std::collections::BTreeSet;

use crate::metrics::Metrics;

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_reason_is_on_the_page() {
    let words = include_str!("world/status.rs").split('"');
    let is_reason = |word: &&str| {
        word.starts_with(|first: char| first.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphabetic())
    };
    let reasons: BTreeSet<&str> = words.filter(is_reason).collect();
    assert!(reasons.len() > 15, "{reasons:?}");
    let page = page();
    let missing: Vec<_> = reasons.iter().filter(|reason| !page.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md says nothing of {missing:?}");
}

#[test]
fn every_metric_is_on_the_page() {
    let page = page();
    let text = Metrics::default().render();
    let help = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let missing: Vec<_> = help.filter(|(name, _)| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md says nothing of {missing:?}");
}
