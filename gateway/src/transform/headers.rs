//! Changes to header fields.

use doorman_crds::api::Edits;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Removes, renames and sets fields. All values of a field are renamed, and take the place of what had the name.
pub fn change(edits: &Edits<HeaderName, HeaderValue>, headers: &mut HeaderMap) {
    for name in &edits.remove {
        headers.remove(name);
    }
    let mut take = |old: &HeaderName| {
        let values: SmallVec<[HeaderValue; 2]> = headers.get_all(old).iter().cloned().collect();
        headers.remove(old);
        values
    };
    let taken: SmallVec<[_; 4]> = edits.rename.iter().map(|(old, new)| (new, take(old))).collect();
    for (new, values) in taken.into_iter().filter(|(_, values)| !values.is_empty()) {
        headers.remove(new);
        for value in values {
            headers.append(new, value);
        }
    }
    for (name, value) in &edits.add {
        headers.insert(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use doorman_crds::api::RequestTransform;
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_removed_then_renamed_then_set() {
        let spec = json!({ "headers": {
            "remove": ["X-Gone"], "rename": { "X-A": "X-B", "X-B": "X-A", "X-None": "X-Kept" },
            "add": { "X-New": "1", "X-Set": "2" },
        } });
        let transform = RequestTransform::parse("t", &serde_json::from_value(spec).unwrap()).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-gone", "g"),
            ("x-a", "a1"),
            ("x-a", "a2"),
            ("x-b", "b"),
            ("x-kept", "k"),
            ("x-set", "s"),
            ("x-set", "t"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        change(&transform.headers, &mut headers);
        let mut seen: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        seen.sort_unstable();
        let wanted = [("x-a", "b"), ("x-b", "a1"), ("x-b", "a2"), ("x-kept", "k"), ("x-new", "1"), ("x-set", "2")];
        assert_eq!(seen, wanted);
    }
}
