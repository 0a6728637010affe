//! GraphQL schemas, as upstreams tell them by introspection (GraphQL specification, section 4).
//!
//! In: the answer to [`QUESTION`]. Out: the schema, its operation types and its types in short.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Document, tree};

/// What clients' tools ask too; no member that older servers don't know.
const QUESTION: &str = concat!(
    r#"{"query":"query IntrospectionQuery { __schema { "#,
    "queryType { name } mutationType { name } subscriptionType { name } types { ...FullType } ",
    "directives { name description locations args { ...InputValue } } } } ",
    "fragment FullType on __Type { kind name description ",
    "fields(includeDeprecated: true) { name description args { ...InputValue } type { ...TypeRef } isDeprecated deprecationReason } ",
    "inputFields { ...InputValue } interfaces { ...TypeRef } ",
    "enumValues(includeDeprecated: true) { name description isDeprecated deprecationReason } possibleTypes { ...TypeRef } } ",
    "fragment InputValue on __InputValue { name description type { ...TypeRef } defaultValue } ",
    "fragment TypeRef on __Type { kind name ofType { kind name ofType { kind name ofType { kind name ",
    "ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } } } } }",
    r#"","operationName":"IntrospectionQuery"}"#,
);
/// What introspection itself is made of.
const OWN: &str = "__";

/// A schema that an upstream told.
#[derive(Debug)]
pub struct Schema {
    /// As it was told.
    pub schema: Box<RawValue>,
    /// Which of its types operations start from.
    pub operation_types: OperationTypes,
    /// Its types, but for those of introspection.
    pub types: Vec<Type>,
}

/// Names of types that operations start from; null: there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = GraphQlOperationTypes)]
pub struct OperationTypes {
    /// Of queries.
    pub query: Option<String>,
    /// Of mutations.
    pub mutation: Option<String>,
    /// Of subscriptions.
    pub subscription: Option<String>,
}

/// A type in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = GraphQlType)]
pub struct Type {
    /// Its name.
    pub name: String,
    /// `OBJECT`, `SCALAR`, `ENUM` and so on.
    pub kind: String,
    /// What it is for.
    pub description: Option<String>,
    /// Its fields, or those of an input.
    pub fields: Vec<Field>,
}

/// A field of a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = GraphQlField)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// As schemas write it, such as `[Item!]!`.
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "__schema")]
    schema: Box<RawValue>,
}

impl Document for Schema {
    const ACCEPT: &'static str = "application/graphql-response+json, application/json;q=0.9";
    const QUESTION: Option<&'static str> = Some(QUESTION);

    fn read(answer: &[u8]) -> Result<Self, String> {
        let tree = tree::parse(answer)?;
        let told = tree.pointer("/data/__schema").filter(|schema| schema.is_object());
        let told = told.ok_or_else(|| "it holds no schema; the upstream may not allow introspection".to_owned())?;
        // As it was told, letter by letter.
        let Answer { data: Data { schema } } = serde_json::from_slice(answer).map_err(|error| error.to_string())?;
        let types = told.get("types").and_then(Value::as_array).into_iter().flatten();
        let name = |of: &str| Some(told.get(of)?.get("name")?.as_str()?.to_owned());
        let operation_types = OperationTypes {
            query: name("queryType"),
            mutation: name("mutationType"),
            subscription: name("subscriptionType"),
        };
        Ok(Self { schema, operation_types, types: types.filter_map(in_short).collect() })
    }

    fn weight(&self) -> u64 {
        let fields = self.types.iter().map(|one| one.fields.len()).sum::<usize>() * size_of::<Field>();
        // The texts of types in short are in the schema once more.
        (2 * self.schema.get().len() + fields + self.types.len() * size_of::<Type>()) as u64
    }
}

fn text(value: &Value, member: &str) -> Option<String> {
    value.get(member)?.as_str().map(str::to_owned)
}

fn in_short(told: &Value) -> Option<Type> {
    let name = text(told, "name").filter(|name| !name.starts_with(OWN))?;
    let fields = ["fields", "inputFields"].into_iter().find_map(|member| told.get(member)?.as_array());
    let field = |field: &Value| Some(Field { name: text(field, "name")?, kind: written(field.get("type")?) });
    Some(Type {
        name,
        kind: text(told, "kind").unwrap_or_default(),
        description: text(told, "description"),
        fields: fields.into_iter().flatten().filter_map(field).collect(),
    })
}

/// A type as schemas write it.
fn written(told: &Value) -> String {
    let inner = || told.get("ofType").map(written).unwrap_or_default();
    match told.get("kind").and_then(Value::as_str) {
        Some("NON_NULL") => format!("{}!", inner()),
        Some("LIST") => format!("[{}]", inner()),
        _ => text(told, "name").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_question_is_json() {
        let question: Value = serde_json::from_str(QUESTION).unwrap();
        let query = question["query"].as_str().unwrap();
        let count = |c: char| query.matches(c).count();
        assert_eq!((count('{'), count('(')), (count('}'), count(')')));
        assert!(query.contains("__schema") && query.contains("fragment TypeRef on __Type"));
    }

    #[test]
    fn types_are_told_in_short() {
        let non_null = |of: Value| json!({ "kind": "NON_NULL", "name": null, "ofType": of });
        let list = |of: Value| json!({ "kind": "LIST", "ofType": of });
        let named = |name: &str| json!({ "kind": "OBJECT", "name": name, "ofType": null });
        let schema = json!({ "queryType": { "name": "Query" }, "mutationType": null, "types": [
            { "kind": "OBJECT", "name": "Query", "description": "Asks", "fields": [
                { "name": "items", "type": non_null(list(non_null(named("Item")))) }, { "name": "odd", "type": 7 }, 7 ] },
            { "kind": "INPUT_OBJECT", "name": "In", "fields": null, "inputFields": [{ "name": "a", "type": named("Int") }] },
            { "kind": "OBJECT", "name": "__Type" }, { "kind": "SCALAR" }, null,
        ] });
        let answer = json!({ "data": { "__schema": schema } }).to_string();
        let read = Schema::read(answer.as_bytes()).unwrap();
        assert_eq!(read.schema.get(), schema.to_string());
        assert_eq!(json!(read.operation_types), json!({ "query": "Query", "mutation": null, "subscription": null }));
        assert_eq!(
            json!(read.types),
            json!([
                { "name": "Query", "kind": "OBJECT", "description": "Asks",
                    "fields": [{ "name": "items", "type": "[Item!]!" }, { "name": "odd", "type": "" }] },
                { "name": "In", "kind": "INPUT_OBJECT", "description": null, "fields": [{ "name": "a", "type": "Int" }] },
            ])
        );
        assert!(read.weight() > 2 * schema.to_string().len() as u64);
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        let deep = format!("{{\"data\":{{\"__schema\":{}{}}}}}", "{\"ofType\":".repeat(5_000), "}".repeat(5_000));
        for answer in [
            "",
            "{}",
            "[]",
            "<html></html>",
            "data: {__schema: {types: []}}",
            r#"{"data":null,"errors":[{"message":"no introspection"}]}"#,
            r#"{"data":{"__schema":[]}}"#,
            &deep,
        ] {
            assert!(Schema::read(answer.as_bytes()).is_err(), "{answer:.80}");
        }
        assert!(Schema::read(br#"{"data":{"__schema":{"types":{}}}}"#).unwrap().types.is_empty());
    }
}
