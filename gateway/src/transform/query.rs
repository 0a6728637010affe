//! Changes to queries.

use std::borrow::Cow;

use doorman_crds::api::Edits;
use form_urlencoded::byte_serialize;

/// Removes, renames and sets parameters. Names are compared decoded and exactly; order, repetition and values of what
/// is not changed stay as they came. What is set takes the place of all of its name, at the end.
pub fn change(edits: &Edits<Box<str>, Box<str>>, query: &str) -> String {
    let mut changed = String::with_capacity(query.len() + 32);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let end = pair.find('=').unwrap_or(pair.len());
        let name = decoded(&pair[..end]);
        if edits.remove.iter().any(|gone| **gone == *name) {
            continue;
        }
        let new = edits.rename.iter().find(|(old, _)| **old == *name).map(|(_, new)| &**new);
        let becomes = new.unwrap_or(&name);
        if edits.add.iter().any(|(set, _)| **set == *becomes) {
            continue;
        }
        separate(&mut changed);
        match new {
            Some(new) => changed.extend(byte_serialize(new.as_bytes())),
            None => changed.push_str(&pair[..end]),
        }
        changed.push_str(&pair[end..]);
    }
    for (name, value) in &edits.add {
        separate(&mut changed);
        changed.extend(byte_serialize(name.as_bytes()));
        changed.push('=');
        changed.extend(byte_serialize(value.as_bytes()));
    }
    changed
}

fn separate(query: &mut String) {
    if !query.is_empty() {
        query.push('&');
    }
}

/// A name as servers read it.
fn decoded(name: &str) -> Cow<'_, str> {
    if !name.contains(['%', '+']) {
        return Cow::Borrowed(name);
    }
    form_urlencoded::parse(name.as_bytes()).next().map_or(Cow::Borrowed(""), |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use doorman_crds::api::RequestTransform;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn edits(spec: Value) -> Edits<Box<str>, Box<str>> {
        let spec = serde_json::from_value(json!({ "query": spec })).unwrap();
        RequestTransform::parse("t", &spec).unwrap().unwrap_or_default().query
    }

    #[test]
    fn parameters_are_removed_then_renamed_then_set() {
        let edits = edits(json!({
            "remove": ["gone", "a b"], "rename": { "old": "n&w", "x": "y", "y": "x" }, "add": { "set": "1 2", "q": "" },
        }));
        for (query, wanted) in [
            ("", "q=&set=1+2"),
            ("k=1&gone=2&k=3&gone", "k=1&k=3&q=&set=1+2"),
            ("a%20b=1&a+b=2&%67one=3", "q=&set=1+2"),
            ("old=%31&set=9&old", "n%26w=%31&n%26w&q=&set=1+2"),
            ("x=1&y=2", "y=1&x=2&q=&set=1+2"),
            ("&&k=%zz&Gone=1", "k=%zz&Gone=1&q=&set=1+2"),
        ] {
            assert_eq!(change(&edits, query), wanted, "{query}");
        }
    }

    proptest! {
        #[test]
        fn what_is_not_named_stays_as_it_was(query in "([a-c]{1,2}(=[a-z%2]{0,3})?(&[a-c]{1,2}(=[a-z%2]{0,3})?){0,4})?") {
            prop_assert_eq!(change(&edits(json!({ "remove": ["zz"], "rename": { "yy": "a" } })), &query), query);
        }

        #[test]
        fn what_was_set_reads_back(name in "\\PC{1,6}", value in "\\PC{0,6}", query in "[a-z=&%+]{0,12}") {
            let changed = change(&edits(json!({ "add": { name.as_str(): value.as_str() } })), &query);
            let read: Vec<_> = form_urlencoded::parse(changed.as_bytes()).filter(|(read, _)| *read == name).collect();
            prop_assert_eq!(read, [(name.as_str().into(), value.as_str().into())]);
        }
    }
}
