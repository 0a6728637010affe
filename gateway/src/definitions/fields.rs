//! The members that the platform API and its documents know (reference: platform API 8 and 9), and the spec of a
//! `DoormanApi`: both ways.
//!
//! In: documents, or a spec. Out: the other. What always holds: null gives nothing and clears nothing; a member that is
//! set changes its own place in the spec and no other, so what only manifests can say stays; what a spec has no place
//! for is named, and the nearest that it can hold is set.

use std::collections::BTreeMap;

use doorman_crds::api::{
    AccessSpec, CreditsSpec, EndpointSpec, IpMode, IpSpec, Method, Protocol, RequestTransform, ResponseTransform,
    RetriesSpec, RuleSpec, SoapVersion, TimeoutsSpec, TransformSpec, Validation, ValidationSpec,
};
use doorman_crds::{DoormanApiSpec, FieldError, Reason};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use super::weights::numbers;

/// A document, or some members of one.
pub type Members = Map<String, Value>;

/// Why a member is not in the spec as it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It is not of the kind that it must be.
    #[error("{member} must be {kind}")]
    Kind {
        /// The member, with the place it is in.
        member: String,
        /// What it must be.
        kind: &'static str,
    },
    /// A spec has no place for it.
    #[error("{member} can't be kept in a DoormanApi object: {reason}")]
    NoPlace {
        /// The member, with the place it is in.
        member: String,
        /// Why not.
        reason: &'static str,
    },
}

impl Misfit {
    fn kind(member: &str, kind: &'static str) -> Self {
        Self::Kind { member: member.to_owned(), kind }
    }

    fn no_place(member: &str, reason: &'static str) -> Self {
        Self::NoPlace { member: member.to_owned(), reason }
    }

    /// The member, with the place it is in.
    pub fn member(&self) -> &str {
        match self {
            Self::Kind { member, .. } | Self::NoPlace { member, .. } => member,
        }
    }

    fn within(self, place: &str) -> Self {
        match self {
            Self::Kind { member, kind } => Self::Kind { member: format!("{place}.{member}"), kind },
            Self::NoPlace { member, reason } => Self::NoPlace { member: format!("{place}.{member}"), reason },
        }
    }
}

type Spec = DoormanApiSpec;
type Lens<T> = fn(&mut Spec) -> &mut Option<T>;

/// Where a member is in the spec.
enum Place {
    /// Null when absent.
    Text(Lens<String>),
    /// Null when absent.
    Texts(Lens<Vec<String>>),
    /// Empty when absent.
    AnyTexts(Lens<Vec<String>>),
    /// This when absent.
    Flag(Lens<bool>, bool),
    /// Null when absent.
    MaybeFlag(Lens<bool>),
    /// In milliseconds there; no member when absent.
    Seconds(Lens<i32>),
    /// No member when absent; none is as good as absent.
    Numbers(Lens<Vec<i32>>),
    /// A change to requests or responses, and the section that may be around it.
    Transform(Lens<Box<TransformSpec>>, &'static str),
    Own(fn(&Spec) -> Value, fn(&mut Spec, &Value) -> Result<(), Misfit>),
    /// It always has this value.
    Nowhere(fn() -> Value, &'static str),
}

const TEXT: &str = "text";
const TEXTS: &str = "a list of texts";
const FLAG: &str = "true or false";
const NUMBER: &str = "a number";
const NUMBERS: &str = "a list of whole numbers";
const OBJECT: &str = "an object";
const CHANGES: &str = "changes to headers, query, body or status";
const NO_CHANGE: &str = "it holds what is no change to headers, query, body or status";
const CRUD: &str = "CRUD APIs are kept in documents only";
const NO_EFFECT: &str = "it has no effect";

const FIELDS: &[(&str, Place)] = &[
    ("api_description", Place::Text(|spec| &mut spec.description)),
    ("api_allowed_roles", Place::AnyTexts(|spec| &mut spec.access.get_or_insert_default().roles)),
    ("api_allowed_groups", Place::Texts(|spec| &mut spec.access.get_or_insert_default().groups)),
    ("api_servers", Place::AnyTexts(|spec| &mut spec.servers)),
    ("api_server_weights", Place::Numbers(|spec| &mut spec.server_weights)),
    ("api_type", Place::Own(|spec| label(spec.protocol).into(), set_type)),
    ("api_allowed_retry_count", Place::Own(retries, set_retries)),
    ("api_grpc_package", Place::Text(|spec| &mut spec.grpc.get_or_insert_default().package)),
    ("api_grpc_allowed_packages", Place::Texts(|spec| &mut spec.grpc.get_or_insert_default().allowed_packages)),
    ("api_grpc_allowed_services", Place::Texts(|spec| &mut spec.grpc.get_or_insert_default().allowed_services)),
    ("api_grpc_allowed_methods", Place::Texts(|spec| &mut spec.grpc.get_or_insert_default().allowed_methods)),
    (
        "api_authorization_field_swap",
        Place::Text(|spec| &mut spec.headers.get_or_insert_default().authorization_field_swap),
    ),
    ("api_allowed_headers", Place::Texts(|spec| &mut spec.headers.get_or_insert_default().allowed)),
    ("api_credits_enabled", Place::Own(|spec| spec.credits.as_ref().is_some_and(|c| c.enabled).into(), set_credits)),
    ("api_credit_group", Place::Text(|spec| &mut credits(spec).group)),
    ("active", Place::Flag(|spec| &mut spec.active, true)),
    ("api_cors_allow_origins", Place::Texts(|spec| &mut spec.cors.get_or_insert_default().allow_origins)),
    ("api_cors_allow_methods", Place::Texts(|spec| &mut spec.cors.get_or_insert_default().allow_methods)),
    ("api_cors_allow_headers", Place::Texts(|spec| &mut spec.cors.get_or_insert_default().allow_headers)),
    ("api_cors_allow_credentials", Place::Flag(|spec| &mut spec.cors.get_or_insert_default().allow_credentials, false)),
    ("api_cors_expose_headers", Place::Texts(|spec| &mut spec.cors.get_or_insert_default().expose_headers)),
    ("api_public", Place::Flag(|spec| &mut spec.public, false)),
    ("api_auth_required", Place::Flag(|spec| &mut spec.auth_required, true)),
    ("api_ip_mode", Place::Own(ip_mode, set_ip_mode)),
    ("api_ip_whitelist", Place::Texts(|spec| &mut ip(spec).allow)),
    ("api_ip_blacklist", Place::Texts(|spec| &mut ip(spec).deny)),
    ("api_trust_x_forwarded_for", Place::MaybeFlag(|spec| &mut ip(spec).trust_forwarded_for)),
    ("api_request_transform", Place::Transform(|spec| &mut spec.request_transform, "request")),
    ("api_response_transform", Place::Transform(|spec| &mut spec.response_transform, "response")),
    ("api_response_envelope", Place::Flag(|spec| &mut spec.envelope, false)),
    ("api_openapi_url", Place::Text(|spec| &mut spec.openapi_url)),
    ("api_openapi_auto_discover", Place::Nowhere(|| false.into(), NO_EFFECT)),
    ("api_wsdl_url", Place::Text(|spec| &mut spec.soap.get_or_insert_default().wsdl_url)),
    ("api_soap_version", Place::Own(soap_version, set_soap_version)),
    ("api_ws_security", Place::Nowhere(|| Value::Null, "credentials belong in a Secret, see spec.soap.wsSecurity")),
    ("api_graphql_max_depth", Place::Own(graphql_depth, set_graphql_depth)),
    ("api_graphql_schema_url", Place::Text(|spec| &mut spec.graphql.get_or_insert_default().schema_path)),
    ("api_graphql_subscriptions", Place::Nowhere(|| false.into(), NO_EFFECT)),
    ("api_grpc_web_enabled", Place::Flag(|spec| &mut spec.grpc.get_or_insert_default().web, false)),
    ("api_grpc_reflection_url", Place::Nowhere(|| Value::Null, "see spec.grpc.reflection")),
    ("api_is_crud", Place::Nowhere(|| false.into(), CRUD)),
    ("api_crud_collection", Place::Nowhere(|| Value::Null, CRUD)),
    ("api_crud_schema", Place::Nowhere(|| Value::Null, CRUD)),
    ("api_connect_timeout", Place::Seconds(|spec| &mut timeouts(spec).connect_millis)),
    ("api_read_timeout", Place::Seconds(|spec| &mut timeouts(spec).read_millis)),
    ("api_write_timeout", Place::Seconds(|spec| &mut timeouts(spec).write_millis)),
    ("api_pool_timeout", Place::Seconds(|spec| &mut timeouts(spec).pool_millis)),
];
/// What an API is found by, and what is told of it; nothing of it is set.
const OF_API: [&str; 6] = ["_id", "api_name", "api_version", "api_id", "api_path", "managed_by"];

fn label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::REST => "REST",
        Protocol::SOAP => "SOAP",
        Protocol::GraphQL => "GRAPHQL",
        Protocol::GRPC => "GRPC",
    }
}

/// A label of one's own is no failure: all but these four mean REST.
fn set_type(spec: &mut Spec, given: &Value) -> Result<(), Misfit> {
    let given = given.as_str().ok_or_else(|| Misfit::kind("api_type", TEXT))?;
    let labels = [Protocol::SOAP, Protocol::GraphQL, Protocol::GRPC];
    spec.protocol = labels.into_iter().find(|one| given.eq_ignore_ascii_case(label(*one))).unwrap_or(Protocol::REST);
    Ok(())
}

fn retries(spec: &Spec) -> Value {
    spec.upstream.as_ref().and_then(|upstream| upstream.retries).map_or(0, |retries| retries.attempts).into()
}

fn set_retries(spec: &mut Spec, given: &Value) -> Result<(), Misfit> {
    const MOST: f64 = 10.0;
    let given = given.as_f64().ok_or_else(|| Misfit::kind("api_allowed_retry_count", NUMBER))?;
    let attempts = given.clamp(0.0, MOST) as i32;
    spec.upstream.get_or_insert_default().retries = (attempts > 0).then_some(RetriesSpec { attempts });
    let is_held = (0.0..=MOST).contains(&given);
    is_held.then_some(()).ok_or_else(|| Misfit::no_place("api_allowed_retry_count", "it must be 0 to 10"))
}

fn credits(spec: &mut Spec) -> &mut CreditsSpec {
    spec.credits.get_or_insert(NO_CREDITS)
}

const NO_CREDITS: CreditsSpec = CreditsSpec { enabled: false, group: None };

fn set_credits(spec: &mut Spec, given: &Value) -> Result<(), Misfit> {
    credits(spec).enabled = given.as_bool().ok_or_else(|| Misfit::kind("api_credits_enabled", FLAG))?;
    Ok(())
}

fn ip(spec: &mut Spec) -> &mut IpSpec {
    spec.access.get_or_insert_default().ip.get_or_insert(NO_IP_RULES)
}

const NO_IP_RULES: IpSpec = IpSpec { mode: IpMode::AllowAll, allow: None, deny: None, trust_forwarded_for: None };

fn ip_mode(spec: &Spec) -> Value {
    match spec.access.as_ref().and_then(|access| access.ip.as_ref()).map(|ip| ip.mode) {
        Some(IpMode::Whitelist) => "whitelist".into(),
        Some(IpMode::AllowAll) | None => "allow_all".into(),
    }
}

fn set_ip_mode(spec: &mut Spec, given: &Value) -> Result<(), Misfit> {
    let given = given.as_str().ok_or_else(|| Misfit::kind("api_ip_mode", TEXT))?;
    let is_whitelist = given.eq_ignore_ascii_case("whitelist");
    if !is_whitelist && !given.is_empty() && !given.eq_ignore_ascii_case("allow_all") {
        // Taken for either, it would be a rule that nobody meant.
        return Err(Misfit::kind("api_ip_mode", "`allow_all` or `whitelist`"));
    }
    ip(spec).mode = if is_whitelist { IpMode::Whitelist } else { IpMode::AllowAll };
    Ok(())
}

fn soap_version(spec: &Spec) -> Value {
    match spec.soap.as_ref().and_then(|soap| soap.version) {
        Some(SoapVersion::V11) => "1.1".into(),
        Some(SoapVersion::V12) => "1.2".into(),
        None => Value::Null,
    }
}

fn set_soap_version(spec: &mut Spec, given: &Value) -> Result<(), Misfit> {
    let given = if given.is_null() { Some("") } else { given.as_str() };
    let version = match given.ok_or_else(|| Misfit::kind("api_soap_version", TEXT))? {
        "" => None,
        "1.1" => Some(SoapVersion::V11),
        "1.2" => Some(SoapVersion::V12),
        _ => return Err(Misfit::no_place("api_soap_version", "it must be 1.1 or 1.2")),
    };
    spec.soap.get_or_insert_default().version = version;
    Ok(())
}

fn graphql_depth(spec: &Spec) -> Value {
    spec.graphql.as_ref().and_then(|graphql| graphql.max_depth).into()
}

fn set_graphql_depth(spec: &mut Spec, given: &Value) -> Result<(), Misfit> {
    const MOST: f64 = 1000.0;
    if given.is_null() {
        spec.graphql.get_or_insert_default().max_depth = None;
        return Ok(());
    }
    let given = given.as_f64().ok_or_else(|| Misfit::kind("api_graphql_max_depth", NUMBER))?;
    spec.graphql.get_or_insert_default().max_depth = Some(given.clamp(0.0, MOST) as i32);
    let is_held = (0.0..=MOST).contains(&given);
    is_held.then_some(()).ok_or_else(|| Misfit::no_place("api_graphql_max_depth", "it must be 0 to 1000"))
}

fn timeouts(spec: &mut Spec) -> &mut TimeoutsSpec {
    spec.upstream.get_or_insert_default().timeouts.get_or_insert_default()
}

/// Nothing is said by parts that say nothing.
fn prune(spec: &mut Spec) {
    fn empty<T: Default + PartialEq>(part: &mut Option<T>) {
        part.take_if(|part| *part == T::default());
    }
    if let Some(access) = &mut spec.access {
        access.ip.take_if(|ip| *ip == NO_IP_RULES);
    }
    if let Some(upstream) = &mut spec.upstream {
        empty(&mut upstream.timeouts);
    }
    empty(&mut spec.access);
    empty(&mut spec.cors);
    empty(&mut spec.headers);
    empty(&mut spec.upstream);
    empty(&mut spec.soap);
    empty(&mut spec.graphql);
    empty(&mut spec.grpc);
    spec.credits.take_if(|credits| *credits == NO_CREDITS);
}

impl Place {
    /// The member's value; `None`: there is no such member. The spec is only looked at.
    fn get(&self, spec: &mut Spec) -> Option<Value> {
        Some(match self {
            Self::Text(lens) => json!(lens(spec)),
            Self::Texts(lens) => json!(lens(spec)),
            Self::AnyTexts(lens) => json!(lens(spec).as_deref().unwrap_or_default()),
            Self::Flag(lens, absent) => lens(spec).unwrap_or(*absent).into(),
            Self::MaybeFlag(lens) => json!(lens(spec)),
            Self::Seconds(lens) => (f64::from((*lens(spec))?) / 1000.0).into(),
            Self::Numbers(lens) => json!(lens(spec).as_ref()?),
            Self::Transform(lens, _) => lens(spec).as_deref().map_or(Value::Null, transform),
            Self::Own(get, _) => get(spec),
            Self::Nowhere(value, _) => value(),
        })
    }

    /// As it is in an API that says nothing.
    fn clear(&self, spec: &mut Spec, blank: &mut Spec, member: &str) {
        match self {
            Self::Text(lens) => *lens(spec) = None,
            Self::Texts(lens) | Self::AnyTexts(lens) => *lens(spec) = None,
            Self::Flag(lens, _) | Self::MaybeFlag(lens) => *lens(spec) = None,
            Self::Seconds(lens) => *lens(spec) = None,
            Self::Numbers(lens) => *lens(spec) = None,
            Self::Transform(lens, _) => *lens(spec) = None,
            Self::Own(..) => {
                // A blank one holds nothing that does not fit.
                let _ = self.get(blank).map(|value| self.set(spec, member, &value));
            }
            Self::Nowhere(..) => {}
        }
    }

    fn set(&self, spec: &mut Spec, member: &str, given: &Value) -> Result<(), Misfit> {
        let kind = |kind| Misfit::kind(member, kind);
        match self {
            Self::Text(lens) => *lens(spec) = text(given).map_err(kind)?,
            Self::Texts(lens) => *lens(spec) = Some(texts(given).ok_or_else(|| kind(TEXTS))?),
            Self::AnyTexts(lens) => {
                *lens(spec) = Some(texts(given).ok_or_else(|| kind(TEXTS))?).filter(|texts| !texts.is_empty());
            }
            Self::Flag(lens, absent) => {
                *lens(spec) = Some(given.as_bool().ok_or_else(|| kind(FLAG))?).filter(|flag| flag != absent);
            }
            Self::MaybeFlag(lens) => *lens(spec) = Some(given.as_bool().ok_or_else(|| kind(FLAG))?),
            Self::Seconds(lens) => {
                let seconds = given.as_f64().ok_or_else(|| kind(NUMBER))?;
                let is_held = seconds > 0.0 && seconds <= 3600.0;
                *lens(spec) = (seconds > 0.0).then(|| (seconds * 1000.0).round().clamp(1.0, 3_600_000.0) as i32);
                return is_held.then_some(()).ok_or_else(|| Misfit::no_place(member, "it must be up to 3600 seconds"));
            }
            Self::Numbers(lens) => {
                *lens(spec) = Some(numbers(given).ok_or_else(|| kind(NUMBERS))?).filter(|numbers| !numbers.is_empty());
            }
            Self::Transform(lens, section) => {
                let given = given.as_object().ok_or_else(|| kind(OBJECT))?;
                let own = transform_spec(given, section);
                *lens(spec) = own.clone().map(serde_json::from_value).transpose().map_err(|_| kind(CHANGES))?;
                let is_held = given.is_empty() || own.as_ref().is_some_and(|own| holds(own, given, section));
                return is_held.then_some(()).ok_or_else(|| Misfit::no_place(member, NO_CHANGE));
            }
            Self::Own(_, set) => return set(spec, given),
            Self::Nowhere(value, reason) => {
                let is_held = *given == value();
                return is_held.then_some(()).ok_or_else(|| Misfit::no_place(member, reason));
            }
        }
        Ok(())
    }
}

/// Empty text is none.
fn text(given: &Value) -> Result<Option<String>, &'static str> {
    Ok(Some(given.as_str().ok_or(TEXT)?.to_owned()).filter(|text| !text.is_empty()))
}

fn texts(given: &Value) -> Option<Vec<String>> {
    given.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

const STATUS_MAP: (&str, &str) = ("status_map", "statusMap");

fn transform(spec: &TransformSpec) -> Value {
    let mut shown = json!(spec);
    if let Some(members) = shown.as_object_mut()
        && let Some(map) = members.remove(STATUS_MAP.1)
    {
        members.insert(STATUS_MAP.0.to_owned(), map);
    }
    shown
}

const SECTIONS: [&str; 2] = ["request", "response"];

/// The part of stored changes that is about requests, or answers: under the name of the section, or all of it where
/// there is neither name.
fn own_section(given: &Members, section: &str) -> Option<Members> {
    let is_sectioned = SECTIONS.iter().any(|name| given.contains_key(*name));
    let own = if is_sectioned { given.get(section)?.as_object()? } else { given };
    Some(own.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// That part in the words of the spec. What acts on the other kind of message is left out, as is what no one knows.
fn transform_spec(given: &Members, section: &str) -> Option<Value> {
    let mut own = own_section(given, section)?;
    for changes in ["headers", "query"] {
        let added = own.get_mut(changes).and_then(|changes| changes.get_mut("add")?.as_object_mut());
        for value in added.into_iter().flat_map(|added| added.values_mut()) {
            if value.is_number() || value.is_boolean() {
                *value = value.to_string().into();
            }
        }
    }
    let mut statuses = own.remove(STATUS_MAP.0);
    for status in statuses.iter_mut().filter_map(Value::as_object_mut).flat_map(|map| map.values_mut()) {
        if let Some(number) = status.as_str().and_then(|text| text.trim().parse::<i32>().ok()) {
            *status = number.into();
        }
    }
    let is_request = section == SECTIONS[0];
    let members = [
        ("headers", own.remove("headers")),
        ("query", own.remove("query").filter(|_| is_request)),
        ("body", own.remove("body")),
        (STATUS_MAP.1, statuses.filter(|_| !is_request)),
    ];
    let members = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let members: Members = members.collect();
    (!members.is_empty()).then_some(Value::Object(members))
}

/// Would clients read back what they gave?
fn holds(own: &Value, given: &Members, section: &str) -> bool {
    let spec = serde_json::from_value::<TransformSpec>(own.clone());
    spec.is_ok_and(|spec| Some(transform(&spec)) == own_section(given, section).map(Value::Object))
}

/// Whether changes can be applied.
///
/// # Errors
/// The first problem, with the member it is in.
pub fn check_transforms(api: &Members) -> Result<(), String> {
    let fields = ["api_request_transform", "api_response_transform"];
    for (field, section) in fields.into_iter().zip(SECTIONS) {
        let given = api.get(field).and_then(Value::as_object);
        let Some(spec) = given.and_then(|given| transform_spec(given, section)) else { continue };
        let spec: TransformSpec = readable(field, &spec)?;
        let parsed = if section == SECTIONS[0] {
            RequestTransform::parse(field, &spec).map(drop)
        } else {
            ResponseTransform::parse(field, &spec).map(drop)
        };
        parsed.map_err(first)?;
    }
    Ok(())
}

/// Whether rules can be applied, enabled or not.
///
/// # Errors
/// The first problem, with the member it is in.
pub fn check_validation(validation: &Members) -> Result<(), String> {
    const FIELD: &str = "validation_schema";
    let Some(rules) = rules_of(validation, &mut Vec::new()) else { return Ok(()) };
    let spec: ValidationSpec = readable(FIELD, &json!({ "rules": rules }))?;
    Validation::parse(FIELD, &spec).map(drop).map_err(first)
}

fn readable<T: serde::de::DeserializeOwned>(field: &str, spec: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(spec).map_err(|error| in_stored_words(&format!("{field}.{error}")))
}

fn first(errors: Vec<FieldError>) -> String {
    in_stored_words(&errors.first().map_or_else(|| "can't be applied".to_owned(), ToString::to_string))
}

/// Members that are spelled in one way in objects and in another in documents.
fn in_stored_words(message: &str) -> String {
    let words = [("statusMap", "status_map"), ("nestedSchema", "nested_schema"), ("arrayItems", "array_items")];
    words.iter().fold(message.to_owned(), |message, (ours, stored)| message.replace(ours, stored))
}

/// An API of this name and version as a body without further members makes it: nobody may call it.
pub fn blank(name: &str, version: &str) -> DoormanApiSpec {
    DoormanApiSpec {
        name: name.to_owned(),
        version: version.to_owned(),
        protocol: Protocol::REST,
        description: None,
        active: None,
        public: None,
        auth_required: None,
        servers: None,
        server_weights: None,
        endpoints: None,
        // A protected API that names no group lets nobody in.
        access: Some(Box::new(AccessSpec { groups: Some(Vec::new()), ..AccessSpec::default() })),
        cors: None,
        headers: None,
        upstream: None,
        credits: None,
        soap: None,
        graphql: None,
        grpc: None,
        openapi_url: None,
        request_transform: None,
        response_transform: None,
        envelope: None,
        gateway_refs: None,
    }
}

/// Sets members of an API; those of null stay as they are.
pub fn set(spec: &mut DoormanApiSpec, members: &Members) -> Vec<Misfit> {
    let mut misfits = Vec::new();
    for (member, given) in members.iter().filter(|(_, given)| !given.is_null()) {
        let place = FIELDS.iter().find(|(name, _)| name == member);
        let outcome = match place {
            Some((_, place)) => place.set(spec, member, given),
            None if OF_API.contains(&&**member) => Ok(()),
            None => Err(Misfit::no_place(member, "there is no such member")),
        };
        misfits.extend(outcome.err());
    }
    prune(spec);
    misfits
}

/// The path in a spec that holds a member of an API; `None`: none does.
#[cfg(test)]
pub(crate) fn place_of(member: &str) -> Option<String> {
    let (name, place) = FIELDS.iter().find(|(name, _)| *name == member)?;
    let samples = [json!("x"), json!(["x"]), json!(7), json!([7]), json!(true), json!(false), json!("whitelist")];
    let more = [json!("1.2"), json!("GRPC"), json!({ "headers": { "remove": ["x"] } })];
    let before = serde_json::to_value(blank("a", "v1")).ok()?;
    samples.into_iter().chain(more).find_map(|sample| {
        let mut spec = blank("a", "v1");
        place.set(&mut spec, name, &sample).ok()?;
        let after = serde_json::to_value(&spec).ok()?;
        let mut path = place_in(&after, &sample).or_else(|| first_difference(&before, &after))?;
        if matches!(place, Place::Transform(..)) {
            path.truncate(path.find('.').unwrap_or(path.len()));
        }
        Some(path)
    })
}

/// The path of this value, if it is there.
#[cfg(test)]
fn place_in(all: &Value, wanted: &Value) -> Option<String> {
    all.as_object()?.iter().find_map(|(name, value)| {
        if value == wanted { Some(name.clone()) } else { Some(format!("{name}.{}", place_in(value, wanted)?)) }
    })
}

/// The path of the first value that is not the same, as deep as there is one.
#[cfg(test)]
fn first_difference(before: &Value, after: &Value) -> Option<String> {
    let (name, value) = after.as_object()?.iter().find(|(name, value)| before.get(name.as_str()) != Some(value))?;
    let below = first_difference(before.get(name).unwrap_or(&Value::Null), value);
    Some(below.map_or_else(|| name.clone(), |below| format!("{name}.{below}")))
}

/// An API as clients read it, without its endpoints.
pub fn api(spec: &DoormanApiSpec, uid: &str) -> Members {
    let mut looked_at = spec.clone();
    let mut shown = Members::from_iter([
        ("api_name".to_owned(), Value::from(&*spec.name)),
        ("api_version".to_owned(), Value::from(&*spec.version)),
        ("api_id".to_owned(), api_id(uid).to_string().into()),
        ("api_path".to_owned(), format!("/{}/{}", spec.name, spec.version).into()),
    ]);
    let fields = FIELDS.iter().filter_map(|(name, place)| Some(((*name).to_owned(), place.get(&mut looked_at)?)));
    shown.extend(fields);
    shown
}

fn id_of(parts: &[&str]) -> [u8; 16] {
    let mut id = [0; 16];
    let size = id.len() / parts.len();
    for (place, part) in id.chunks_mut(size).zip(parts) {
        place.copy_from_slice(&Sha256::digest(part.as_bytes())[..size]);
    }
    *Builder::from_custom_bytes(id).as_uuid().as_bytes()
}

/// The id of an API that an object defines: that of the object where it has one.
pub fn api_id(uid: &str) -> Uuid {
    Uuid::parse_str(uid).unwrap_or_else(|_| Uuid::from_bytes(id_of(&[uid])))
}

/// The id of an endpoint of such an API: the first half tells the API, the second the endpoint.
pub fn endpoint_id(uid: &str, endpoint: &EndpointSpec) -> Uuid {
    Uuid::from_bytes(id_of(&[uid, &format!("{} {}", endpoint.method.as_str(), endpoint.uri)]))
}

/// Whether endpoints of this API may have this id.
pub fn may_be_of(uid: &str, id: Uuid) -> bool {
    id.as_bytes()[..8] == id_of(&[uid, ""])[..8]
}

/// The endpoint as clients read it.
pub fn endpoint(spec: &DoormanApiSpec, uid: &str, endpoint: &EndpointSpec) -> Members {
    let mut shown = Members::from_iter([
        ("api_name".to_owned(), Value::from(&*spec.name)),
        ("api_version".to_owned(), Value::from(&*spec.version)),
        ("api_id".to_owned(), api_id(uid).to_string().into()),
        ("endpoint_id".to_owned(), endpoint_id(uid, endpoint).to_string().into()),
        ("endpoint_method".to_owned(), endpoint.method.as_str().into()),
        ("endpoint_uri".to_owned(), Value::from(&*endpoint.uri)),
        ("endpoint_description".to_owned(), json!(endpoint.description)),
        ("endpoint_servers".to_owned(), json!(endpoint.servers)),
        ("client_uri".to_owned(), json!(endpoint.client_uri)),
    ]);
    shown
        .extend(endpoint.server_weights.as_ref().map(|weights| ("endpoint_server_weights".to_owned(), json!(weights))));
    shown
}

/// The method of this name, as endpoints of objects have it.
///
/// # Errors
/// Of a method that no endpoint can have.
pub fn method(name: &str) -> Result<Method, Misfit> {
    let not_proxied = "it must be GET, POST, PUT, PATCH, DELETE or HEAD";
    serde_json::from_value(name.into()).map_err(|_| Misfit::no_place("endpoint_method", not_proxied))
}

/// A path as objects have it.
pub fn slashed(uri: &str) -> String {
    if uri.starts_with('/') { uri.to_owned() } else { format!("/{uri}") }
}

/// An endpoint of nothing but what it is found by.
pub fn blank_endpoint(method: Method, uri: &str) -> EndpointSpec {
    EndpointSpec {
        method,
        uri: slashed(uri),
        client_uri: None,
        description: None,
        servers: None,
        server_weights: None,
        validation: None,
    }
}

/// Why an API of this spec could not be served; what only a later version can serve, and what may come yet, is no reason.
pub fn problems(spec: &DoormanApiSpec) -> Vec<FieldError> {
    let errors = doorman_crds::api::parse(spec).err().unwrap_or_default();
    errors.into_iter().filter(|error| error.reason == Reason::Invalid).collect()
}

/// Sets members of an endpoint; those of null stay as they are.
pub fn set_endpoint(endpoint: &mut EndpointSpec, members: &Members) -> Vec<Misfit> {
    const FOUND_BY: [&str; 8] =
        ["_id", "api_name", "api_version", "api_id", "endpoint_id", "endpoint_method", "endpoint_uri", "managed_by"];
    let mut misfits = Vec::new();
    for (member, given) in members.iter().filter(|(_, given)| !given.is_null()) {
        let outcome = match member.as_str() {
            "endpoint_description" => text(given).map(|text| endpoint.description = text),
            "endpoint_servers" => texts(given).map(|texts| endpoint.servers = Some(texts)).ok_or(TEXTS),
            "endpoint_server_weights" => numbers(given)
                .map(|numbers| endpoint.server_weights = Some(numbers).filter(|numbers| !numbers.is_empty()))
                .ok_or(NUMBERS),
            "client_uri" => text(given).map(|uri| endpoint.client_uri = uri.as_deref().map(slashed)),
            other if FOUND_BY.contains(&other) => Ok(()),
            other => {
                misfits.push(Misfit::no_place(other, "there is no such member"));
                Ok(())
            }
        };
        misfits.extend(outcome.err().map(|kind| Misfit::kind(member, kind)));
    }
    misfits
}

/// What an endpoint demands of bodies, as clients read it.
pub fn validation(id: &str, spec: &ValidationSpec) -> Members {
    let rules = spec.rules.iter().map(|(path, rule)| (path.clone(), shown_rule(&json!(rule))));
    Members::from_iter([
        ("endpoint_id".to_owned(), Value::from(id)),
        ("validation_enabled".to_owned(), spec.enabled.unwrap_or(true).into()),
        ("validation_schema".to_owned(), json!({ "validation_schema": rules.collect::<Members>() })),
    ])
}

/// What an endpoint demands, of a whole document.
pub fn validation_spec(document: &Members) -> (Option<ValidationSpec>, Vec<Misfit>) {
    let mut misfits = Vec::new();
    let Some(rules) = rules_of(document, &mut misfits) else { return (None, misfits) };
    let read = rules.into_iter().filter_map(|(path, rule)| {
        let rule = serde_json::from_value::<RuleSpec>(rule);
        if rule.is_err() {
            misfits.push(Misfit::kind(&path, "a rule"));
        }
        Some((path, rule.ok()?))
    });
    let rules: BTreeMap<_, _> = read.collect();
    let enabled = document.get("validation_enabled").and_then(Value::as_bool).filter(|enabled| !enabled);
    (Some(ValidationSpec { enabled, rules }), misfits)
}

/// The rules in the words of the spec; they are wrapped once, or not at all in older databases.
fn rules_of(document: &Members, misfits: &mut Vec<Misfit>) -> Option<Members> {
    let schema = document.get("validation_schema")?.as_object()?;
    let rules = schema.get("validation_schema").and_then(Value::as_object).unwrap_or(schema);
    Some(rules.iter().map(|(path, rule)| (path.clone(), any_rule(path, rule, misfits))).collect())
}

/// What is no rule stays as it is, for the parser to name.
fn any_rule(path: &str, rule: &Value, misfits: &mut Vec<Misfit>) -> Value {
    match rule {
        Value::Object(rule) => rule_spec(path, rule, misfits).into(),
        other => other.clone(),
    }
}

/// Members that a rule has there and here alike.
const OF_RULE: [&str; 7] = ["required", "type", "min", "max", "pattern", "enum", "format"];

/// A rule in the words of the spec, with all that is within it.
fn rule_spec(path: &str, rule: &Members, misfits: &mut Vec<Misfit>) -> Members {
    let given = |member| rule.get(member).filter(|value| !value.is_null());
    let mut spec: Members =
        OF_RULE.into_iter().filter_map(|member| Some((member.to_owned(), given(member)?.clone()))).collect();
    spec.entry("required").or_insert_with(|| false.into());
    spec.entry("type").or_insert_with(|| "".into());
    if given("custom_validator").is_some() {
        misfits.push(Misfit::no_place(&format!("{path}.custom_validator"), "no such check exists"));
    }
    match given("nested_schema") {
        Some(Value::Object(nested)) => {
            let within =
                |(name, rule): (&String, &Value)| (name.clone(), any_rule(&format!("{path}.{name}"), rule, misfits));
            spec.insert("nestedSchema".to_owned(), nested.iter().map(within).collect::<Members>().into());
        }
        Some(other) => drop(spec.insert("nestedSchema".to_owned(), other.clone())),
        None => {}
    }
    if let Some(item) = given("array_items") {
        spec.insert("arrayItems".to_owned(), any_rule(&format!("{path}[]"), item, misfits));
    }
    spec
}

fn shown_rule(spec: &Value) -> Value {
    let given = |member| spec.get(member).cloned().unwrap_or_default();
    let mut shown: Members = OF_RULE.into_iter().map(|member| (member.to_owned(), given(member))).collect();
    shown.insert("custom_validator".to_owned(), Value::Null);
    let nested = spec.get("nestedSchema").and_then(Value::as_object);
    let nested = nested.map(|rules| rules.iter().map(|(name, rule)| (name.clone(), shown_rule(rule))).collect());
    shown.insert("nested_schema".to_owned(), nested.map_or(Value::Null, |rules: Members| rules.into()));
    shown.insert("array_items".to_owned(), spec.get("arrayItems").map_or(Value::Null, shown_rule));
    shown.into()
}

/// The spec that a document, its endpoints and what they demand of bodies are, and what does not fit in.
///
/// An endpoint of a method that is never proxied has no place in it.
pub fn spec<'a>(
    api: &Members,
    endpoints: impl IntoIterator<Item = &'a Members>,
    validation: impl Fn(&str) -> Option<Members>,
) -> (DoormanApiSpec, Vec<Misfit>) {
    let text = |document: &Members, member: &str| document.get(member).and_then(Value::as_str).map(str::to_owned);
    let key = |member| text(api, member).unwrap_or_default();
    let mut spec = blank(&key("api_name"), &key("api_version"));
    let mut misfits = set(&mut spec, api);
    let mut served = Vec::new();
    for (index, document) in endpoints.into_iter().enumerate() {
        let place = format!("endpoints[{index}]");
        let mut misfit = |misfit: Misfit| misfits.push(misfit.within(&place));
        let name = text(document, "endpoint_method").unwrap_or_default();
        let method = match method(&name.to_ascii_uppercase()) {
            Ok(method) => method,
            Err(never_proxied) => {
                misfit(never_proxied);
                continue;
            }
        };
        let Some(uri) = text(document, "endpoint_uri") else {
            misfit(Misfit::kind("endpoint_uri", TEXT));
            continue;
        };
        let mut endpoint = blank_endpoint(method, &uri);
        set_endpoint(&mut endpoint, document).into_iter().for_each(&mut misfit);
        if let Some(validation) = text(document, "endpoint_id").and_then(|id| validation(&id)) {
            let (validation, unfit) = validation_spec(&validation);
            unfit.into_iter().for_each(misfit);
            endpoint.validation = validation;
        }
        served.push(endpoint);
    }
    spec.endpoints = Some(served).filter(|served| !served.is_empty());
    (spec, misfits)
}

/// Makes an API what a whole document says; what no document can say stays, and so do its endpoints.
///
/// An API that asks for no group goes on so where the document says nothing of groups.
pub fn reset(spec: &mut DoormanApiSpec, document: &Members) -> Vec<Misfit> {
    let mut before = blank(&spec.name, &spec.version);
    for (member, place) in FIELDS.iter().filter(|(member, _)| *member != "api_allowed_groups") {
        place.clear(spec, &mut before, member);
    }
    set(spec, document)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;

    fn texts() -> impl Strategy<Value = Vec<String>> {
        vec("[a-z:/.-]{1,12}", 0..3)
    }

    fn text() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9 /.-]{1,12}"
    }

    /// Any value that a spec can hold, or null, for each member.
    fn document() -> impl Strategy<Value = Members> {
        let value = |member: &'static str, place: &'static Place| -> BoxedStrategy<Option<(String, Value)>> {
            let value = match (member, place) {
                (_, Place::Text(_)) => text().prop_map(Value::from).boxed(),
                (_, Place::Texts(_) | Place::AnyTexts(_)) => texts().prop_map(Value::from).boxed(),
                (_, Place::Flag(..) | Place::MaybeFlag(_)) => any::<bool>().prop_map(Value::from).boxed(),
                (_, Place::Seconds(_)) => {
                    (1..3_600_000_u32).prop_map(|millis| (f64::from(millis) / 1000.0).into()).boxed()
                }
                (_, Place::Numbers(_)) => vec(0..=100_i32, 1..3).prop_map(Value::from).boxed(),
                (_, Place::Transform(_, section)) => transforms(section).boxed(),
                (_, Place::Nowhere(value, _)) => Just(value()).boxed(),
                ("api_type", _) => {
                    prop::sample::select(vec!["REST", "SOAP", "GRAPHQL", "GRPC"]).prop_map(Value::from).boxed()
                }
                ("api_allowed_retry_count", _) => (0..=10).prop_map(Value::from).boxed(),
                ("api_graphql_max_depth", _) => (0..=1000).prop_map(Value::from).boxed(),
                ("api_ip_mode", _) => {
                    prop::sample::select(vec!["allow_all", "whitelist"]).prop_map(Value::from).boxed()
                }
                ("api_soap_version", _) => prop::sample::select(vec!["1.1", "1.2"]).prop_map(Value::from).boxed(),
                ("api_credits_enabled", _) => any::<bool>().prop_map(Value::from).boxed(),
                (other, _) => panic!("values of {other}?"),
            };
            of(value).prop_map(move |value| value.map(|value| (member.to_owned(), value))).boxed()
        };
        let all: Vec<_> = FIELDS.iter().map(|(member, place)| value(member, place)).collect();
        all.prop_map(|members| members.into_iter().flatten().collect())
    }

    fn transforms(section: &'static str) -> impl Strategy<Value = Value> {
        (texts(), of(text()), 200..600_i32).prop_map(move |(remove, wrap, status)| {
            let mut transform = json!({ "headers": { "remove": remove } });
            if section == "response" {
                transform["status_map"] = json!({ "500": status });
            }
            if let Some(wrap) = wrap {
                transform["body"] = json!({ "wrap": wrap, "set": { "$.a": [1, null, "x"] } });
            }
            transform
        })
    }

    proptest! {
        #[test]
        fn a_document_is_told_as_it_was_given(document in document()) {
            let mut spec = blank("orders", "v1");
            prop_assert_eq!(set(&mut spec, &document), []);
            let told = api(&spec, "7");
            for (member, value) in &document {
                prop_assert_eq!(told.get(member), Some(value), "{}", member);
            }
            let mut again = blank("orders", "v1");
            prop_assert_eq!(set(&mut again, &told), []);
            prop_assert_eq!(&again, &spec);
            let mut other = blank("orders", "v1");
            let more = [("api_public", true), ("active", false)].map(|(name, flag)| (name.to_owned(), flag.into()));
            set(&mut other, &Members::from_iter(more));
            prop_assert_eq!(reset(&mut other, &told), []);
            prop_assert_eq!(&other, &spec);
        }

        #[test]
        fn what_only_manifests_can_say_stays(document in document()) {
            let mut spec = blank("orders", "v1");
            let upstream = json!({ "tls": { "serverName": "a" }, "circuitBreaker": { "enabled": false } });
            spec.upstream = serde_json::from_value(upstream).unwrap();
            let soap = json!({ "wsSecurity": { "credentialsSecretRef": { "name": "s" } } });
            spec.soap = serde_json::from_value(soap).unwrap();
            spec.grpc = serde_json::from_value(json!({ "reflection": true })).unwrap();
            let before = spec.clone();
            prop_assert_eq!(set(&mut spec, &document), []);
            let upstream = |spec: &DoormanApiSpec| {
                spec.upstream.clone().map(|upstream| (upstream.tls, upstream.circuit_breaker))
            };
            prop_assert_eq!(upstream(&spec), upstream(&before));
            prop_assert_eq!(spec.soap.unwrap().ws_security, before.soap.unwrap().ws_security);
            prop_assert_eq!(spec.grpc.unwrap().reflection, Some(true));
        }
    }

    #[test]
    fn what_has_no_place_is_named_and_the_nearest_is_set() {
        for (member, value, held) in [
            ("api_is_crud", json!(true), json!(false)),
            ("api_allowed_retry_count", json!(99), json!(10)),
            ("api_allowed_retry_count", json!(-1), json!(0)),
            ("api_soap_version", json!("2"), Value::Null),
            (
                "api_response_transform",
                json!({ "headers": { "add": { "n": 1 } } }),
                json!({ "headers": { "add": { "n": "1" } } }),
            ),
        ] {
            let mut spec = blank("orders", "v1");
            let misfits = set(&mut spec, &Members::from_iter([(member.to_owned(), value)]));
            assert!(matches!(&*misfits, [Misfit::NoPlace { member: named, .. }] if named == member), "{misfits:?}");
            assert_eq!(api(&spec, "7")[member], held);
        }
        let mut spec = blank("orders", "v1");
        let misfits = set(&mut spec, &Members::from_iter([("api_public".to_owned(), "yes".into())]));
        assert_eq!(misfits[0].to_string(), "api_public must be true or false");
        let misfits = set(&mut spec, &Members::from_iter([("api_ip_mode".to_owned(), "blacklist".into())]));
        assert_eq!(misfits[0].to_string(), "api_ip_mode must be `allow_all` or `whitelist`");
        let labelled = set(&mut spec, &Members::from_iter([("api_type".to_owned(), "WEBSOCKET".into())]));
        assert_eq!((labelled, spec.protocol), (vec![], Protocol::REST));
    }

    #[test]
    fn ids_tell_the_api_and_the_endpoint() {
        let uid = "0d9b1c5e-6a5f-4d5a-9a54-0a4d4b1d9a11";
        assert_eq!(api_id(uid).to_string(), uid);
        let [get, post] = ["GET", "POST"].map(|name| blank_endpoint(method(name).unwrap(), "/a"));
        let [one, other] = [&get, &post].map(|endpoint| endpoint_id(uid, endpoint));
        assert!(one != other && may_be_of(uid, one) && may_be_of(uid, other) && !may_be_of("another", one));
        assert_eq!(one, endpoint_id(uid, &get), "it stays");
    }
}
