//! Cross-origin rules of an API, ready to be applied.

use http::{HeaderName, HeaderValue, Method};

use super::CorsSpec;
use crate::FieldError;

/// Cross-origin rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Origins that are let in.
    origins: Vec<OriginRule>,
    /// Value of `Access-Control-Allow-Methods`.
    pub methods: HeaderValue,
    /// Value of `Access-Control-Allow-Headers`; `None`: any.
    pub headers: Option<HeaderValue>,
    /// Whether cookies and authorization may be sent.
    pub allow_credentials: bool,
    /// Value of `Access-Control-Expose-Headers`.
    pub exposed: Option<HeaderValue>,
}

#[derive(Clone, Debug, PartialEq)]
enum OriginRule {
    Any,
    Exact(String),
    /// `https://*.example.com`: what comes before and after the labels in front.
    Below(String, String),
}

/// Without a list, every method of REST.
const METHODS: &str = "GET, POST, PUT, DELETE, PATCH, HEAD, OPTIONS";

impl Default for Cors {
    /// Any origin, without credentials.
    fn default() -> Self {
        Self {
            origins: vec![OriginRule::Any],
            methods: HeaderValue::from_static(METHODS),
            headers: None,
            allow_credentials: false,
            exposed: None,
        }
    }
}

impl Cors {
    /// May scripts of this origin call?
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|rule| match rule {
            OriginRule::Any => true,
            OriginRule::Exact(exact) => exact == origin,
            OriginRule::Below(scheme, domain) => origin
                .strip_prefix(scheme.as_str())
                .and_then(|rest| rest.strip_suffix(domain.as_str()))
                .is_some_and(|labels| {
                    !labels.is_empty() && labels.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
                }),
        })
    }

    pub(super) fn parse(spec: Option<&CorsSpec>, errors: &mut Vec<FieldError>) -> Self {
        let Some(spec) = spec else { return Self::default() };
        let mut cors = Self { allow_credentials: spec.allow_credentials.unwrap_or(false), ..Self::default() };
        if let Some(origins) = &spec.allow_origins {
            cors.origins = origins.iter().map(|text| origin(text)).collect();
        }
        if let Some(methods) = &spec.allow_methods {
            cors.methods = self::methods(methods, errors);
        }
        let any = |names: &&Vec<String>| !names.iter().any(|name| name.trim() == "*");
        cors.headers = spec.allow_headers.as_ref().filter(any).map(|n| names("allowHeaders", n, errors));
        cors.exposed =
            spec.expose_headers.as_ref().filter(|n| !n.is_empty()).map(|n| names("exposeHeaders", n, errors));
        cors
    }
}

fn origin(text: &str) -> OriginRule {
    let text = text.trim().trim_end_matches('/');
    if text == "*" {
        return OriginRule::Any;
    }
    match text.split_once("://*.") {
        Some((scheme, domain)) => OriginRule::Below(format!("{scheme}://"), format!(".{domain}")),
        None => OriginRule::Exact(text.to_owned()),
    }
}

fn methods(texts: &[String], errors: &mut Vec<FieldError>) -> HeaderValue {
    if texts.iter().any(|text| text.trim() == "*") {
        return HeaderValue::from_static(METHODS);
    }
    let mut listed: Vec<String> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let method = text.trim().to_ascii_uppercase();
        if Method::from_bytes(method.as_bytes()).is_err() {
            let field = format!("spec.cors.allowMethods[{index}]");
            errors.push(FieldError::invalid(field, format!("`{text}` is not an HTTP method")));
        } else if !listed.contains(&method) {
            listed.push(method);
        }
    }
    if !listed.iter().any(|method| method == "OPTIONS") {
        listed.push("OPTIONS".into());
    }
    value(&listed)
}

fn names(member: &str, texts: &[String], errors: &mut Vec<FieldError>) -> HeaderValue {
    let mut listed: Vec<String> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let name = text.trim();
        if name != "*" && name.parse::<HeaderName>().is_err() {
            let field = format!("spec.cors.{member}[{index}]");
            errors.push(FieldError::invalid(field, format!("`{text}` is not a header name")));
        } else {
            listed.push(name.to_owned());
        }
    }
    value(&listed)
}

/// Tokens, which a header can carry.
fn value(listed: &[String]) -> HeaderValue {
    HeaderValue::try_from(listed.join(", ")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(spec: &serde_json::Value) -> Cors {
        let mut errors = Vec::new();
        let cors = Cors::parse(Some(&serde_json::from_value(spec.clone()).unwrap()), &mut errors);
        assert_eq!(errors, [], "{spec}");
        cors
    }

    #[test]
    fn an_origin_is_let_in_exactly_or_below_a_domain() {
        let cors = cors(&serde_json::json!({ "allowOrigins": ["http://ok.example", "https://*.example.com"] }));
        for origin in ["http://ok.example", "https://a.example.com", "https://a.b.example.com"] {
            assert!(cors.allows_origin(origin), "{origin}");
        }
        for origin in [
            "https://ok.example",
            "http://ok.example:81",
            "https://example.com",
            "https://.example.com",
            "http://a.example.com",
            "https://evil.com/.example.com",
            "https://a@b.example.com",
            "https://evilexample.com",
            "null",
            "",
        ] {
            assert!(!cors.allows_origin(origin), "{origin}");
        }
    }

    #[test]
    fn without_a_list_all_are_let_in_and_with_an_empty_one_nobody() {
        assert!(Cors::default().allows_origin("http://x"));
        assert!(!cors(&serde_json::json!({ "allowOrigins": [] })).allows_origin("http://x"));
        assert!(cors(&serde_json::json!({ "allowOrigins": ["*"] })).allows_origin("http://x"));
    }

    #[test]
    fn lists_are_ready_to_be_sent() {
        let listed =
            cors(&serde_json::json!({ "allowMethods": ["get", "POST"], "allowHeaders": ["X-A", "content-type"] }));
        assert_eq!(listed.methods, "GET, POST, OPTIONS");
        assert_eq!(listed.headers.unwrap(), "X-A, content-type");
        assert_eq!(cors(&serde_json::json!({ "allowHeaders": ["*"] })).headers, None);
        let mut errors = Vec::new();
        let spec = serde_json::json!({ "allowMethods": ["G T"], "exposeHeaders": ["not ok"] });
        Cors::parse(Some(&serde_json::from_value(spec).unwrap()), &mut errors);
        assert_eq!(errors.len(), 2);
    }
}
