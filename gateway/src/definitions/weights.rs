//! Weights of servers in documents: beside a list of servers there may be one of weights, as an object has them. An empty
//! list of weights is none.

use doorman_crds::api::read_weights;
use mongodb::bson::Document;
use serde_json::Value;

use super::fields::Members;
use crate::store::{Collection, plain_document};

/// The member that lists servers, and the one with their weights.
fn members(collection: Collection) -> Option<(&'static str, &'static str)> {
    match collection {
        Collection::Apis => Some(("api_servers", "api_server_weights")),
        Collection::Endpoints => Some(("endpoint_servers", "endpoint_server_weights")),
        Collection::Routings => Some(("routing_servers", "routing_server_weights")),
        _ => None,
    }
}

/// The numbers of a list of whole ones; what is too large for one stays larger than any weight.
pub(super) fn numbers(given: &Value) -> Option<Vec<i32>> {
    let number = |item: &Value| {
        let whole = item.as_f64().filter(|number| number.fract() == 0.0);
        whole.map(|number| number.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
    };
    given.as_array()?.iter().map(number).collect()
}

/// The weights that the servers of a document will have once members are set; `None`: all the same.
///
/// # Errors
/// The problem, with the member.
pub fn weights(collection: Collection, stored: &Members, given: &Members) -> Result<Option<Vec<u8>>, String> {
    let member = |name| [given, stored].into_iter().find_map(|from| from.get(name).filter(|value| !value.is_null()));
    let Some((servers, weights)) = members(collection) else { return Ok(None) };
    let Some(value) = member(weights) else { return Ok(None) };
    let numbers = numbers(value).ok_or_else(|| format!("{weights} must be a list of whole numbers"))?;
    if numbers.is_empty() {
        return Ok(None);
    }
    let count = member(servers).and_then(Value::as_array).map_or(0, Vec::len);
    read_weights(&numbers, count).map(Some).map_err(|problem| format!("{weights} {problem}"))
}

/// The same of a document that is stored.
///
/// # Errors
/// The problem, with the member.
pub fn stored_weights(collection: Collection, stored: &Document) -> Result<Option<Vec<u8>>, String> {
    weights(collection, &plain_document(stored), &Members::new())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn api(members: Value) -> Members {
        let Value::Object(members) = members else { panic!("{members}") };
        members
    }

    #[test]
    fn weights_are_looked_at_as_they_will_be() {
        let stored = api(json!({ "api_servers": ["a", "b"], "api_server_weights": [1, 2.0] }));
        for (given, expected) in [
            (json!({}), Ok(Some(vec![1, 2]))),
            (json!({ "api_server_weights": null }), Ok(Some(vec![1, 2]))),
            (json!({ "api_server_weights": [] }), Ok(None)),
            (json!({ "api_server_weights": [0, 100] }), Ok(Some(vec![0, 100]))),
            (json!({ "api_servers": ["a"], "api_server_weights": [3] }), Ok(Some(vec![3]))),
            (json!({ "api_servers": ["a"] }), Err("api_server_weights must have one weight for each server: 1, not 2")),
            (json!({ "api_server_weights": [1e18, 1] }), Err("api_server_weights must be 0 to 100 each")),
            (json!({ "api_server_weights": [0.5, 1] }), Err("api_server_weights must be a list of whole numbers")),
            (json!({ "api_server_weights": 1 }), Err("api_server_weights must be a list of whole numbers")),
        ] {
            let found = weights(Collection::Apis, &stored, &api(given.clone()));
            assert_eq!(found, expected.map_err(str::to_owned), "{given}");
        }
        assert_eq!(weights(Collection::Roles, &stored, &stored), Ok(None));
    }
}
