//! Changes to requests and answers, from their wire form to typed ones (reference: gateway behaviour 17).
//!
//! A change never writes what the gateway vouches for: credentials, the caller's identity, what belongs to one
//! connection or to the form of the body, and what answers say to browsers of other origins.

use std::collections::BTreeMap;
use std::str::FromStr;

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::Value;

use super::field_path::FieldPath;
use super::parse::{WHO, is_never_forwarded};
use super::{BodyChanges, FieldChanges, TransformSpec};
use crate::FieldError;

/// Changes to requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestTransform {
    /// Changes to the headers that would go upstream.
    pub headers: Edits<HeaderName, HeaderValue>,
    /// Changes to the client's query.
    pub query: Edits<Box<str>, Box<str>>,
    /// Changes to a JSON body.
    pub body: Option<BodyEdits>,
}

/// Changes to answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponseTransform {
    /// Changes to the headers that would reach the client.
    pub headers: Edits<HeaderName, HeaderValue>,
    /// Changes to a JSON body.
    pub body: Option<BodyEdits>,
    /// What becomes of the statuses of JSON answers.
    pub statuses: Vec<(StatusCode, StatusCode)>,
}

/// Removed, then renamed all at once, then set.
#[derive(Clone, Debug, PartialEq)]
pub struct Edits<N, V> {
    /// Names to remove.
    pub remove: Vec<N>,
    /// Old and new names.
    pub rename: Vec<(N, N)>,
    /// Names and their values.
    pub add: Vec<(N, V)>,
}

impl<N, V> Edits<N, V> {
    /// Is nothing changed?
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.rename.is_empty() && self.add.is_empty()
    }
}

impl<N, V> Default for Edits<N, V> {
    fn default() -> Self {
        Self { remove: Vec::new(), rename: Vec::new(), add: Vec::new() }
    }
}

/// Wrapped, then removed, renamed all at once and set; at least one of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BodyEdits {
    /// The only member of the object that the body becomes a member of.
    pub wrap: Option<Box<str>>,
    /// What to remove.
    pub remove: Vec<FieldPath>,
    /// From where to where.
    pub rename: Vec<(FieldPath, FieldPath)>,
    /// What to put where.
    pub set: Vec<(FieldPath, Value)>,
}

impl RequestTransform {
    /// Reads changes. `None`: there are none.
    ///
    /// # Errors
    /// Every problem found, each with the place below `field` that it is in.
    pub fn parse(field: &str, spec: &TransformSpec) -> Result<Option<Self>, Vec<FieldError>> {
        let mut errors = Vec::new();
        if spec.status_map.is_some() {
            errors.push(FieldError::invalid(format!("{field}.statusMap"), "requests have no status; remove it"));
        }
        let transform = Self {
            headers: headers(&format!("{field}.headers"), spec.headers.as_ref(), false, &mut errors),
            query: query(spec.query.as_ref()),
            body: body(&format!("{field}.body"), spec.body.as_ref(), &mut errors),
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok((transform != Self::default()).then_some(transform))
    }
}

impl ResponseTransform {
    /// Reads changes. `None`: there are none.
    ///
    /// # Errors
    /// Every problem found, each with the place below `field` that it is in.
    pub fn parse(field: &str, spec: &TransformSpec) -> Result<Option<Self>, Vec<FieldError>> {
        let mut errors = Vec::new();
        if spec.query.is_some() {
            errors.push(FieldError::invalid(format!("{field}.query"), "answers have no query; remove it"));
        }
        let transform = Self {
            headers: headers(&format!("{field}.headers"), spec.headers.as_ref(), true, &mut errors),
            body: body(&format!("{field}.body"), spec.body.as_ref(), &mut errors),
            statuses: statuses(&format!("{field}.statusMap"), spec.status_map.as_ref(), &mut errors),
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok((transform != Self::default()).then_some(transform))
    }
}

/// Whether only the gateway writes this header.
fn is_kept(name: &HeaderName, is_answer: bool) -> bool {
    is_never_forwarded(name)
        || WHO.contains(&name.as_str())
        || name == http::header::CONTENT_ENCODING
        || (is_answer && name.as_str().starts_with("access-control-"))
}

fn headers(
    field: &str,
    spec: Option<&FieldChanges>,
    is_answer: bool,
    errors: &mut Vec<FieldError>,
) -> Edits<HeaderName, HeaderValue> {
    let mut edits = Edits::default();
    let Some(spec) = spec else { return edits };
    let mut refuse = |field: String, message: String| errors.push(FieldError::invalid(field, message));
    let named = |text: &str| HeaderName::from_str(text.trim()).map_err(|_| format!("`{text}` is not a header name"));
    let writable = |text: &str| {
        let name = named(text)?;
        if is_kept(&name, is_answer) { Err(format!("`{name}` is written by the gateway only")) } else { Ok(name) }
    };
    for (index, text) in spec.remove.iter().flatten().enumerate() {
        match named(text) {
            // What never passes is not there to be removed.
            Ok(name) if is_kept(&name, is_answer) => {}
            Ok(name) => edits.remove.push(name),
            Err(message) => refuse(format!("{field}.remove[{index}]"), message),
        }
    }
    for (old, new) in spec.rename.iter().flatten() {
        match writable(old).and_then(|old| Ok((old, writable(new)?))) {
            Ok(names) => edits.rename.push(names),
            Err(message) => refuse(format!("{field}.rename[{old}]"), message),
        }
    }
    for (text, value) in spec.add.iter().flatten() {
        let valued = || HeaderValue::from_str(value).map_err(|_| format!("`{value}` is not a header value"));
        match writable(text).and_then(|name| Ok((name, valued()?))) {
            Ok(header) => edits.add.push(header),
            Err(message) => refuse(format!("{field}.add[{text}]"), message),
        }
    }
    edits
}

fn query(spec: Option<&FieldChanges>) -> Edits<Box<str>, Box<str>> {
    let boxed = |pairs: Option<&BTreeMap<String, String>>| {
        pairs.into_iter().flatten().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect()
    };
    let Some(spec) = spec else { return Edits::default() };
    Edits {
        remove: spec.remove.iter().flatten().map(|name| name.as_str().into()).collect(),
        rename: boxed(spec.rename.as_ref()),
        add: boxed(spec.add.as_ref()),
    }
}

fn body(field: &str, spec: Option<&BodyChanges>, errors: &mut Vec<FieldError>) -> Option<BodyEdits> {
    let spec = spec?;
    let mut path = |place: String, text: &str| {
        FieldPath::parse_from_root(text)
            .map_err(|message| errors.push(FieldError::invalid(format!("{field}.{place}"), message)))
            .ok()
    };
    let mut edits = BodyEdits { wrap: spec.wrap.as_deref().map(Into::into), ..BodyEdits::default() };
    for (index, text) in spec.remove.iter().flatten().enumerate() {
        edits.remove.extend(path(format!("remove[{index}]"), text));
    }
    for (old, new) in spec.rename.iter().flatten() {
        let place = format!("rename[{old}]");
        edits.rename.extend(path(place.clone(), old).zip(path(place, new)));
    }
    for (text, value) in spec.set.iter().flatten() {
        edits.set.extend(path(format!("set[{text}]"), text).map(|path| (path, value.clone())));
    }
    (edits != BodyEdits::default()).then_some(edits)
}

fn statuses(
    field: &str,
    spec: Option<&BTreeMap<String, i32>>,
    errors: &mut Vec<FieldError>,
) -> Vec<(StatusCode, StatusCode)> {
    // No JSON comes with the others.
    let status = |code: Option<u16>| {
        let code = code.filter(|code| (200..=599).contains(code) && ![204, 205, 304].contains(code));
        code.and_then(|code| StatusCode::from_u16(code).ok())
    };
    let mut statuses = Vec::new();
    for (from, to) in spec.into_iter().flatten() {
        match (status(from.trim().parse().ok()), status(u16::try_from(*to).ok())) {
            (Some(from), Some(to)) => statuses.push((from, to)),
            _ => errors.push(FieldError::invalid(
                format!("{field}[{from}]"),
                format!("`{from}: {to}` is not two statuses from 200 to 599 that have a body"),
            )),
        }
    }
    statuses
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(spec: Value) -> Result<Option<RequestTransform>, Vec<FieldError>> {
        RequestTransform::parse("t", &serde_json::from_value(spec).unwrap())
    }

    fn response(spec: Value) -> Result<Option<ResponseTransform>, Vec<FieldError>> {
        ResponseTransform::parse("t", &serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn changes_read_as_what_they_say() {
        let transform = request(json!({
            "headers": { "remove": ["X-A", "Authorization"], "rename": { "X-B": "x-c" }, "add": { "X-D": "1" } },
            "query": { "remove": ["q"] },
            "body": { "wrap": "data", "set": { "$.a.b": 1 } },
        }));
        let transform = transform.unwrap().unwrap();
        assert_eq!(transform.headers.remove, [HeaderName::from_static("x-a")], "what never passes needs no removal");
        assert_eq!(transform.headers.rename[0].1, "x-c");
        assert_eq!(&*transform.query.remove[0], "q");
        assert_eq!(transform.body.unwrap().set[0].0, FieldPath::parse("a.b").unwrap());
        let transform = response(json!({ "statusMap": { "500": 502 } })).unwrap().unwrap();
        assert_eq!(transform.statuses, [(StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_GATEWAY)]);
    }

    #[test]
    fn changes_of_nothing_are_none() {
        for spec in [json!({}), json!({ "headers": {}, "body": { "remove": [] } })] {
            assert_eq!(request(spec.clone()).unwrap(), None);
            assert_eq!(response(spec).unwrap(), None);
        }
    }

    #[test]
    fn what_the_gateway_vouches_for_is_never_written() {
        for name in [
            "Authorization",
            "Cookie",
            "X-Api-Key",
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "TE",
            "Content-Encoding",
            "X-User-Email",
            "X-Doorman-User",
            "X_Doorman_User",
            "X-Request-ID",
            "Set_Cookie",
        ] {
            for headers in [
                json!({ "add": { name: "x" } }),
                json!({ "rename": { "X-A": name } }),
                json!({ "rename": { name: "X-A" } }),
            ] {
                let errors = request(json!({ "headers": headers })).expect_err(name);
                assert!(errors[0].message.contains("by the gateway only"), "{errors:?}");
                assert!(response(json!({ "headers": headers })).is_err(), "{name}");
            }
        }
        let open = json!({ "headers": { "add": { "Access-Control-Allow-Origin": "*" } } });
        assert!(response(open.clone()).is_err());
        assert!(request(open).is_ok());
    }

    #[test]
    fn each_problem_names_its_field() {
        let requests = [
            (json!({ "statusMap": { "500": 502 } }), "t.statusMap"),
            (json!({ "headers": { "remove": ["ok", "not ok"] } }), "t.headers.remove[1]"),
            (json!({ "headers": { "add": { "x": "a\nb" } } }), "t.headers.add[x]"),
            (json!({ "headers": { "rename": { "x": "" } } }), "t.headers.rename[x]"),
            (json!({ "body": { "remove": ["$.a", "$"] } }), "t.body.remove[1]"),
            (json!({ "body": { "rename": { "$.a": "$.b..c" } } }), "t.body.rename[$.a]"),
            (json!({ "body": { "set": { "$.a[": 1 } } }), "t.body.set[$.a[]"),
        ];
        for (spec, field) in requests {
            let errors = request(spec.clone()).expect_err(field);
            assert!(errors.iter().any(|error| error.field == field), "{spec}: {errors:?}");
        }
        let responses = [
            (json!({ "query": { "remove": ["q"] } }), "t.query"),
            (json!({ "statusMap": { "x": 502 } }), "t.statusMap[x]"),
            (json!({ "statusMap": { "500": 99 } }), "t.statusMap[500]"),
            (json!({ "statusMap": { "500": 204 } }), "t.statusMap[500]"),
            (json!({ "statusMap": { "100": 200 } }), "t.statusMap[100]"),
        ];
        for (spec, field) in responses {
            let errors = response(spec.clone()).expect_err(field);
            assert!(errors.iter().any(|error| error.field == field), "{spec}: {errors:?}");
        }
    }
}
