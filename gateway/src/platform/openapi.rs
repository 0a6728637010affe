//! The description of the platform API (OpenAPI 3.1), made from the handlers themselves.
//!
//! A handler says its path, body, answers, the permission its callers need (as scope of the `token` scheme) and the
//! codes it refuses with (`x-error-codes`: status and code). What all routes have in common is added here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

/// The document, from what the routes say.
pub(super) fn complete(routes: OpenApi) -> Value {
    let mut document = serde_json::to_value(routes).unwrap_or_default();
    document["info"] = json!({
        "title": "Doorman platform API",
        "description": "Manages users, roles, groups, APIs and settings of a Doorman gateway. \
            Sign in with `POST /platform/authorization`; send the token as bearer or cookie. \
            Over https with enforcement on, `X-CSRF-Token` must repeat the cookie `csrf_token`. \
            With `STRICT_RESPONSE_ENVELOPE` answers are wrapped as `status_code` and `response`, \
            `message` or `error_code` and `error_message`.",
        "version": env!("CARGO_PKG_VERSION"),
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    });
    document["servers"] = json!([{ "url": "/" }]);
    let components = &mut document["components"];
    components["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
        "session": { "type": "apiKey", "in": "cookie", "name": "access_token_cookie" },
    });
    components["schemas"]["Error"] = json!({
        "type": "object",
        "description": "A refusal.",
        "properties": {
            "status_code": { "type": "integer", "description": "The status, in the strict envelope." },
            "error_code": { "type": "string", "description": "See the list of error codes." },
            "error_message": { "type": "string", "description": "What went wrong." },
        },
        "required": ["error_message"],
    });
    components["schemas"]["Detail"] = json!({
        "type": "object",
        "description": "A refusal from before a handler was asked.",
        "properties": { "detail": { "type": "string" } },
        "required": ["detail"],
    });
    if let Some(paths) = document["paths"].as_object_mut() {
        // How the router says that a parameter may have slashes.
        let said = std::mem::take(paths);
        paths.extend(said.into_iter().map(|(path, operations)| (path.replace("{*", "{"), operations)));
        for operation in paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
            complete_operation(operation);
        }
    }
    document
}

fn refusal(description: &str) -> Value {
    let either =
        json!({ "anyOf": [{ "$ref": "#/components/schemas/Error" }, { "$ref": "#/components/schemas/Detail" }] });
    json!({ "description": description, "content": { "application/json": { "schema": either } } })
}

fn complete_operation(operation: &mut Value) {
    let tag = operation["tags"][0].as_str().unwrap_or_default().to_lowercase().replace(' ', "_");
    let name = operation["operationId"].as_str().unwrap_or_default().to_owned();
    operation["operationId"] = format!("{tag}_{name}").into();
    let needs_token = operation["security"].as_array().is_some_and(|any| !any.is_empty());
    if let Some(scopes) = operation["security"][0].get("token").cloned() {
        operation["security"] = json!([{ "token": scopes }, { "session": scopes }]);
    } else {
        operation["security"] = json!([]);
    }
    let mut refusals: Vec<(&str, String)> = Vec::new();
    let has_body = operation.get("requestBody").is_some();
    if needs_token {
        refusals.push(("401", "Nobody is signed in.".into()));
    }
    let is_in_path = |parameter: &Value| parameter["in"] == "path";
    if operation["parameters"].as_array().is_some_and(|all| all.iter().any(is_in_path)) {
        // Before the platform is asked: a path that could be read in two ways.
        refusals.push(("400", "`GTW011`".into()));
    }
    if has_body {
        refusals.push(("400", "`REQ004`".into()));
        refusals.push(("408", "`REQ005`".into()));
        refusals.push(("413", "`REQ001`".into()));
    }
    if has_body || operation.get("parameters").is_some() {
        refusals.push(("422", "`VAL001`".into()));
    }
    refusals.push(("403", "`SEC010`, `SEC011`".into()));
    refusals.push(("500", "`GTW999`".into()));
    refusals.push(("503", "`GTW999`".into()));
    let said = operation["x-error-codes"].as_array().cloned().unwrap_or_default();
    let own = said
        .iter()
        .filter_map(|text| text.as_str()?.split_once(' '))
        .map(|(status, code)| (status, format!("`{code}`")));
    let mut told = BTreeMap::<&str, Vec<String>>::new();
    for (status, text) in own.chain(refusals) {
        told.entry(status).or_default().push(text);
    }
    // What an operation says of a refusal that has no code.
    let codeless = operation["responses"].as_object_mut().into_iter().flat_map(|all| all.iter_mut());
    for (_, response) in codeless.filter(|(status, said)| status.starts_with('4') && said.get("content").is_none()) {
        *response = refusal(response["description"].as_str().unwrap_or_default());
    }
    for (status, texts) in told {
        if operation["responses"].get(status).is_none() {
            operation["responses"][status] = refusal(&texts.join(", "));
        }
    }
}
