//! OpenAPI 3.0 and 3.1 and Swagger 2.0: which operations a document describes.
//!
//! In: a document. Out: its operations in the order of paths and methods. What always holds: only what is in the
//! document itself is looked up, however references lead; what is told of it is no larger than [`MOST_TOLD`], however
//! often one part is referred to. A document is taken as it is: what is missing or of another kind is left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{Document, tree};
use crate::request::segments;

/// Methods that operations can have, in the order of the reference.
const METHODS: [&str; 7] = ["get", "post", "put", "delete", "patch", "head", "options"];
/// What is told of a document, in bytes, about.
const MOST_TOLD: usize = 16 << 20;
/// Operations of a document.
const MOST_OPERATIONS: usize = 10_000;
/// References from one to the next.
const MOST_HOPS: usize = 16;
const UNKNOWN: &str = "Unknown";
const JSON: &str = "application/json";

/// What a document describes, as clients read it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = OpenApiParsed)]
pub struct Parsed {
    /// Of the API.
    pub title: String,
    /// Of the API.
    pub version: String,
    /// How many operations there are.
    pub endpoints_count: usize,
    /// The operations.
    pub endpoints: Vec<Operation>,
}

/// One method on one path.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = OpenApiOperation)]
pub struct Operation {
    /// The path.
    pub endpoint_uri: String,
    /// `GET`, `POST`, `PUT`, `DELETE`, `PATCH`, `HEAD` or `OPTIONS`.
    pub endpoint_method: String,
    /// The summary, else the description.
    pub endpoint_description: String,
    /// What it is filed under.
    pub endpoint_tags: Vec<String>,
    /// Those of the path, too.
    pub endpoint_parameters: Vec<Parameter>,
    /// Its body, if it takes one.
    pub endpoint_request_body: Option<RequestBody>,
    /// By status.
    pub endpoint_responses: BTreeMap<String, Response>,
}

/// A parameter of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = OpenApiParameter)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// `path`, `query`, `header` or `cookie`.
    #[serde(rename = "in")]
    pub place: String,
    /// Must it be there?
    pub required: bool,
    /// What it is; null when the document doesn't say.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// A body that an operation takes.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = OpenApiRequestBody)]
pub struct RequestBody {
    /// JSON where that is among several.
    pub content_type: String,
    /// As the document has it.
    pub schema: Value,
}

/// An answer of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = OpenApiResponse)]
pub struct Response {
    /// When it comes.
    pub description: String,
}

/// An operation to add as an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In capitals.
    pub method: String,
    /// The path.
    pub uri: String,
    /// What it does.
    pub description: String,
}

/// A document that an upstream gave.
#[derive(Debug)]
pub struct Description {
    /// The document; what was YAML, as JSON.
    pub document: Arc<RawValue>,
    /// How many paths it has.
    pub paths: usize,
    /// Its operations.
    pub operations: Vec<Found>,
}

impl Document for Description {
    const ACCEPT: &'static str = "application/json, application/yaml;q=0.9, */*;q=0.8";
    const QUESTION: Option<&'static str> = None;

    fn read(answer: &[u8]) -> Result<Self, String> {
        let document = tree::parse(answer)?;
        let parsed = parsed(&document)?;
        let paths = document.get("paths").and_then(Value::as_object).map_or(0, |paths| named(paths).count());
        let found = |operation: Operation| Found {
            method: operation.endpoint_method,
            uri: operation.endpoint_uri,
            description: operation.endpoint_description,
        };
        let operations = parsed.endpoints.into_iter().map(found).collect();
        // What was JSON is told letter by letter.
        let own = std::str::from_utf8(answer).map(|text| text.trim_start_matches('\u{feff}'));
        let own = own.ok().and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let document = own.map_or_else(|| serde_json::value::to_raw_value(&document), Ok);
        let document = document.map_err(|error| error.to_string())?;
        Ok(Self { document: document.into(), paths, operations })
    }

    fn weight(&self) -> u64 {
        let texts = self.operations.iter().map(|one| one.method.len() + one.uri.len() + one.description.len());
        let operations = texts.sum::<usize>() + self.operations.len() * size_of::<Found>();
        (self.document.get().len() + operations) as u64
    }
}

/// What a text of JSON or YAML describes.
///
/// # Errors
/// When it is neither, no object, or too large.
pub fn parse(text: &[u8]) -> Result<Parsed, String> {
    parsed(&tree::parse(text)?)
}

fn parsed(document: &Value) -> Result<Parsed, String> {
    if !document.is_object() {
        return Err("it is no object".to_owned());
    }
    let info = |member: &str| match document.get("info").and_then(|info| info.get(member)) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => UNKNOWN.to_owned(),
    };
    let endpoints = Reader { document, left: MOST_TOLD }.operations()?;
    Ok(Parsed { title: info("title"), version: info("version"), endpoints_count: endpoints.len(), endpoints })
}

/// Paths and nothing else that may be beside them.
fn named(paths: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    paths.iter().filter(|(path, _)| !path.starts_with("x-"))
}

/// Reads operations, and what may still be told of them.
struct Reader<'a> {
    document: &'a Value,
    left: usize,
}

impl<'a> Reader<'a> {
    fn charge(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| format!("it describes more than {MOST_TOLD} bytes"))?;
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<String, String> {
        self.charge(text.len() + size_of::<String>())?;
        Ok(text.to_owned())
    }

    /// A part of the document, told as it is.
    fn copy(&mut self, value: &Value) -> Result<Value, String> {
        self.charge(size_of::<Value>())?;
        match value {
            Value::String(text) => self.charge(text.len())?,
            Value::Array(items) => {
                let items = items.iter().map(|item| self.copy(item)).collect::<Result<Vec<_>, _>>()?;
                return Ok(items.into());
            }
            Value::Object(members) => {
                let mut copied = Map::new();
                for (name, value) in members {
                    copied.insert(self.text(name)?, self.copy(value)?);
                }
                return Ok(copied.into());
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        Ok(value.clone())
    }

    /// What a reference leads to; one that leads nowhere is an empty object that is nobody's.
    fn resolve(&self, mut value: &'a Value) -> &'a Value {
        for _ in 0..MOST_HOPS {
            let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return value };
            let found = reference.strip_prefix('#').and_then(|path| self.at(path));
            let Some(found) = found else { return &Value::Null };
            value = found;
        }
        &Value::Null
    }

    /// A JSON pointer as the fragment of a URI (RFC 6901 6).
    fn at(&self, path: &str) -> Option<&'a Value> {
        segments(path).ok()?.iter().try_fold(self.document, |value, segment| {
            let name = segment.replace("~1", "/").replace("~0", "~");
            match value {
                Value::Array(items) => items.get(name.parse::<usize>().ok()?),
                other => other.get(&name),
            }
        })
    }

    fn operations(&mut self) -> Result<Vec<Operation>, String> {
        let mut operations = Vec::new();
        let Some(paths) = self.document.get("paths").and_then(Value::as_object) else { return Ok(operations) };
        for (path, item) in named(paths) {
            let item = self.resolve(item);
            for method in METHODS {
                let Some(operation) = item.get(method).filter(|operation| operation.is_object()) else { continue };
                if operations.len() == MOST_OPERATIONS {
                    return Err(format!("it describes more than {MOST_OPERATIONS} operations"));
                }
                operations.push(self.operation(path, method, item, operation)?);
            }
        }
        Ok(operations)
    }

    fn operation(
        &mut self,
        path: &str,
        method: &str,
        item: &'a Value,
        operation: &'a Value,
    ) -> Result<Operation, String> {
        self.charge(size_of::<Operation>())?;
        let said = |member: &str| operation.get(member).and_then(Value::as_str).filter(|text| !text.is_empty());
        let description = said("summary").or_else(|| said("description")).unwrap_or_default();
        let tags = operation.get("tags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let endpoint_tags = tags.map(|tag| self.text(tag)).collect::<Result<Vec<_>, _>>()?;
        let parameters = self.parameters(item, operation)?;
        let endpoint_request_body = self.body(operation, &parameters)?;
        let mut endpoint_parameters = Vec::new();
        for parameter in parameters {
            let (name, place) = name_of(parameter);
            if !["body", "formData"].contains(&place) {
                endpoint_parameters.push(Parameter {
                    name: self.text(name)?,
                    place: self.text(place)?,
                    required: place == "path" || parameter.get("required") == Some(&Value::Bool(true)),
                    kind: self.kind(parameter).map(str::to_owned),
                });
            }
        }
        let mut endpoint_responses = BTreeMap::new();
        let responses = operation.get("responses").and_then(Value::as_object).into_iter().flatten();
        for (status, response) in responses.filter(|(status, _)| !status.starts_with("x-")) {
            let description = self.resolve(response).get("description").and_then(Value::as_str).unwrap_or_default();
            let response = Response { description: self.text(description)? };
            endpoint_responses.insert(self.text(status)?, response);
        }
        Ok(Operation {
            endpoint_uri: self.text(path)?,
            endpoint_method: method.to_ascii_uppercase(),
            endpoint_description: self.text(description)?,
            endpoint_tags,
            endpoint_parameters,
            endpoint_request_body,
            endpoint_responses,
        })
    }

    /// Those of the path, but for what the operation has of its own.
    fn parameters(&mut self, item: &'a Value, operation: &'a Value) -> Result<Vec<&'a Value>, String> {
        let mut own: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut parameters: Vec<&Value> = Vec::new();
        let listed = [item, operation].map(|of| of.get("parameters").and_then(Value::as_array));
        for parameter in listed.into_iter().flatten().flatten() {
            self.charge(size_of::<Parameter>())?;
            let parameter = self.resolve(parameter);
            let name = name_of(parameter);
            if name.0.is_empty() {
                continue;
            }
            if let Some(of_path) = own.get(&name).and_then(|place| parameters.get_mut(*place)) {
                *of_path = parameter;
            } else {
                own.insert(name, parameters.len());
                parameters.push(parameter);
            }
        }
        Ok(parameters)
    }

    /// Of the first content where there are several (OpenAPI 3), of the parameter itself (Swagger 2).
    fn kind(&self, parameter: &'a Value) -> Option<&'a str> {
        let content = || parameter.get("content")?.as_object()?.values().next()?.get("schema");
        let schema = parameter.get("schema").or_else(content).map_or(parameter, |schema| self.resolve(schema));
        match schema.get("type")? {
            Value::String(kind) => Some(kind),
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            _ => None,
        }
    }

    fn body(&mut self, operation: &'a Value, parameters: &[&'a Value]) -> Result<Option<RequestBody>, String> {
        if let Some(body) = operation.get("requestBody") {
            let Some(content) = self.resolve(body).get("content").and_then(Value::as_object) else { return Ok(None) };
            let Some((kind, content)) = content.get_key_value(JSON).or_else(|| content.iter().next()) else {
                return Ok(None);
            };
            let schema = self.copy(content.get("schema").unwrap_or(&Value::Null))?;
            return Ok(Some(RequestBody { content_type: self.text(kind)?, schema }));
        }
        // Swagger 2: what it takes is among its parameters.
        let document = self.document;
        let taken = || [operation, document].into_iter().find_map(|of| of.get("consumes")?.get(0)?.as_str());
        let place = |wanted: &'static str| move |parameter: &&&Value| name_of(parameter).1 == wanted;
        if let Some(body) = parameters.iter().find(place("body")) {
            let content_type = taken().unwrap_or(JSON);
            let schema = self.copy(body.get("schema").unwrap_or(&Value::Null))?;
            return Ok(Some(RequestBody { content_type: self.text(content_type)?, schema }));
        }
        let mut fields = Map::new();
        let content_type = taken().unwrap_or("application/x-www-form-urlencoded");
        for field in parameters.iter().filter(place("formData")) {
            let kind = self.kind(field).map(|kind| json!({ "type": kind }));
            fields.insert(self.text(name_of(field).0)?, kind.unwrap_or_else(|| json!({})));
        }
        if fields.is_empty() {
            return Ok(None);
        }
        let schema = json!({ "type": "object", "properties": fields });
        Ok(Some(RequestBody { content_type: self.text(content_type)?, schema }))
    }
}

/// Name and place.
fn name_of(parameter: &Value) -> (&str, &str) {
    let text = |member: &str| parameter.get(member).and_then(Value::as_str).unwrap_or_default();
    (text("name"), text("in"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(document: &Value) -> Value {
        serde_json::to_value(parse(document.to_string().as_bytes()).unwrap()).unwrap()
    }

    fn three() -> Value {
        json!({
            "openapi": "3.1.0",
            "info": { "title": "Pets", "version": "1.2" },
            "servers": [{ "url": "https://elsewhere/v9" }],
            "paths": {
                "/pets/{id}": {
                    "summary": "of the path",
                    "parameters": [
                        { "$ref": "#/components/parameters/id" },
                        { "name": "verbose", "in": "query", "schema": { "type": "boolean" } },
                    ],
                    "get": {
                        "summary": "Reads a pet", "description": "longer", "tags": ["pets", 7],
                        "parameters": [{ "name": "verbose", "in": "query", "required": true, "schema": { "type": ["null", "integer"] } }],
                        "responses": { "200": { "description": "the pet" }, "404": { "$ref": "#/components/responses/none" }, "x-a": {} },
                    },
                    "put": {
                        "description": "Changes a pet",
                        "requestBody": { "$ref": "#/components/requestBodies/pet" },
                        "responses": {},
                    },
                    "trace": {},
                },
                "/other": { "$ref": "#/paths/~1pets~1%7Bid%7D" },
                "x-extension": { "get": {} },
            },
            "webhooks": { "/hook": { "post": {} } },
            "components": {
                "parameters": { "id": { "name": "id", "in": "path", "schema": { "$ref": "#/components/schemas/id" } } },
                "responses": { "none": { "description": "there is none" } },
                "requestBodies": { "pet": { "content": {
                    "application/xml": {},
                    "application/json": { "schema": { "$ref": "#/components/schemas/pet" } },
                } } },
                "schemas": { "id": { "type": "string" }, "pet": { "type": "object" } },
            },
        })
    }

    #[test]
    fn operations_are_told_with_what_their_paths_and_references_say() {
        let told = told(&three());
        assert_eq!(
            (&told["title"], &told["version"], &told["endpoints_count"]),
            (&json!("Pets"), &json!("1.2"), &json!(4))
        );
        let operations: Vec<_> = told["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (&one["endpoint_method"], &one["endpoint_uri"]))
            .collect();
        let [get, put] = ["GET", "PUT"].map(Value::from);
        let [pets, other] = ["/pets/{id}", "/other"].map(Value::from);
        assert_eq!(operations, [(&get, &other), (&put, &other), (&get, &pets), (&put, &pets)]);
        assert_eq!(
            told["endpoints"][2],
            json!({
                "endpoint_uri": "/pets/{id}", "endpoint_method": "GET", "endpoint_description": "Reads a pet",
                "endpoint_tags": ["pets"],
                "endpoint_parameters": [
                    { "name": "id", "in": "path", "required": true, "type": "string" },
                    { "name": "verbose", "in": "query", "required": true, "type": "integer" },
                ],
                "endpoint_request_body": null,
                "endpoint_responses": { "200": { "description": "the pet" }, "404": { "description": "there is none" } },
            })
        );
        let put = &told["endpoints"][3];
        assert_eq!(put["endpoint_description"], "Changes a pet");
        assert_eq!(
            put["endpoint_request_body"],
            json!({ "content_type": "application/json", "schema": { "$ref": "#/components/schemas/pet" } })
        );
        assert_eq!(put["endpoint_parameters"][1]["required"], false);
    }

    #[test]
    fn swagger_has_bodies_among_its_parameters() {
        let told = told(&json!({
            "swagger": "2.0", "info": { "version": 2 }, "basePath": "/v2", "consumes": ["application/vnd.a+json"],
            "paths": {
                "/a": { "post": { "parameters": [
                    { "in": "body", "name": "b", "schema": { "type": "object" } },
                    { "in": "header", "name": "X-A", "type": "integer" },
                ] } },
                "/b": { "post": { "consumes": ["multipart/form-data"], "parameters": [
                    { "in": "formData", "name": "file", "type": "file" }, { "in": "formData", "name": "n" },
                ] } },
                "/c": { "get": {} },
            },
        }));
        assert_eq!((&told["title"], &told["version"]), (&json!("Unknown"), &json!("2")));
        let [a, b, c] = [0, 1, 2].map(|n| &told["endpoints"][n]);
        assert_eq!(a["endpoint_uri"], "/a", "the base path is that of the API's servers");
        assert_eq!(
            a["endpoint_request_body"],
            json!({ "content_type": "application/vnd.a+json", "schema": { "type": "object" } })
        );
        assert_eq!(
            a["endpoint_parameters"],
            json!([{ "name": "X-A", "in": "header", "required": false, "type": "integer" }])
        );
        assert_eq!(
            b["endpoint_request_body"],
            json!({ "content_type": "multipart/form-data",
                "schema": { "type": "object", "properties": { "file": { "type": "file" }, "n": {} } } })
        );
        assert_eq!((&c["endpoint_request_body"], &c["endpoint_description"]), (&Value::Null, &json!("")));
    }

    #[test]
    fn a_document_of_an_upstream_is_told_as_it_is() {
        let text = "\u{feff}{ \"paths\": {\"/b\":{\"get\":{}},\"/a\":{},\"x-c\":{}}, \"a\": 1.50 }";
        let description = Description::read(text.as_bytes()).unwrap();
        assert_eq!(description.document.get(), text.trim_start_matches('\u{feff}'));
        assert_eq!((description.paths, description.operations.len()), (2, 1));
        assert!(description.weight() > text.len() as u64);
        let yaml = Description::read(b"paths:\n  /a:\n    get:\n      summary: x\n").unwrap();
        assert_eq!(yaml.document.get(), r#"{"paths":{"/a":{"get":{"summary":"x"}}}}"#);
        let found = Found { method: "GET".into(), uri: "/a".into(), description: "x".into() };
        assert_eq!(yaml.operations, [found]);
        assert_eq!(Description::read(b"{}").unwrap().paths, 0);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for text in ["", "[]", "7", "\"{}\"", "hello", "- a", "null", "<html></html>"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_as_it_should_be_is_left_out() {
        for paths in
            [json!(null), json!([]), json!("x"), json!({ "/a": null, "/b": [], "/c": { "get": 7, "post": null } })]
        {
            assert_eq!(told(&json!({ "paths": paths, "info": [] }))["endpoints"], json!([]), "{paths}");
        }
        let odd = json!({ "get": { "summary": 7, "description": {}, "tags": "a", "parameters": [null, 7, {}, { "name": "n" }],
            "requestBody": [], "responses": [] }, "parameters": {} });
        let told = told(&json!({ "paths": { "/a": odd } }));
        assert_eq!(
            told["endpoints"][0]["endpoint_parameters"],
            json!([{ "name": "n", "in": "", "required": false, "type": null }])
        );
    }

    #[test]
    fn references_lead_nowhere_else_and_end() {
        for reference in
            ["#/paths/~1a", "#/nowhere", "#", "other.json#/a", "http://a/b", "#/x/0", "#/%zz", "#/../a", "#a"]
        {
            let document =
                json!({ "paths": { "/a": { "$ref": reference } }, "x": [{ "$ref": "#/y" }], "y": { "$ref": "#/x/0" } });
            assert_eq!(told(&document)["endpoints_count"], 0, "{reference}");
        }
        let listed = json!({ "paths": { "/a": { "$ref": "#/x/1" } }, "x": [7, { "get": {} }] });
        assert_eq!(told(&listed)["endpoints_count"], 1);
    }

    #[test]
    fn no_small_document_tells_much() {
        let parameters: Vec<_> = (0..2_000).map(|n| json!({ "name": n.to_string(), "in": "query" })).collect();
        let schema: Vec<_> = (0..2_000).map(|_| json!({})).collect();
        let body = json!({ "content": { "a/b": { "schema": schema } } });
        let item = json!({ "get": { "requestBody": body }, "put": {}, "parameters": parameters });
        let paths: Map<_, _> = (0..5_000).map(|n| (format!("/{n}"), json!({ "$ref": "#/item" }))).collect();
        let error = parse(json!({ "item": item, "paths": paths }).to_string().as_bytes()).unwrap_err();
        assert!(error.contains("more than"), "{error}");
        let paths: Map<_, _> = (0..=MOST_OPERATIONS).map(|n| (format!("/{n}"), json!({ "get": {} }))).collect();
        let error = parse(json!({ "paths": paths }).to_string().as_bytes()).unwrap_err();
        assert!(error.contains("more than"), "{error}");
    }
}
