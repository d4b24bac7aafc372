//! `/openapi.json`.

use serde_json::Value;
use utoipa::ToSchema;

/// The description of the interface (OpenAPI 3.1). This type only describes it: `utoipa` writes it.
#[derive(Debug, ToSchema)]
#[schema(examples(json!({
    "openapi": "3.1.0",
    "info": {"title": "Taskpass", "version": "1"},
    "paths": {},
    "components": {}
})))]
pub struct OpenApiDocument {
    /// The version of OpenAPI.
    pub openapi: String,
    /// The title, the version and the licence of the interface.
    #[schema(value_type = Object)]
    pub info: Value,
    /// The operations, by path and method.
    #[schema(value_type = Object)]
    pub paths: Value,
    /// The schemas, headers and parameters that operations refer to.
    #[schema(value_type = Object)]
    pub components: Value,
}
