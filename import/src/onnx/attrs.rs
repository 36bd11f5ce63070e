//! Attributes of a node, those that a function's caller gives among them.

use super::cx::Fail;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, NodeProto};
use std::collections::HashMap;

/// Attributes that a function's caller gave, by the function's names.
pub(crate) type Given<'m> = HashMap<&'m str, &'m AttributeProto>;

/// The attribute of this name, where it has a value.
pub(crate) fn find<'m>(
    node: &'m NodeProto,
    given: &Given<'m>,
    name: &str,
) -> Option<&'m AttributeProto> {
    let own = node.attribute.iter().find(|a| a.name == name)?;
    if own.ref_attr_name.is_empty() {
        Some(own)
    } else {
        given.get(own.ref_attr_name.as_str()).copied()
    }
}

/// Checks the attribute's type; files from before types were stored pass.
pub(crate) fn expect(a: &AttributeProto, want: AttributeType) -> Result<(), Fail> {
    match a.type_.enum_value() {
        Ok(t) if t == want || t == AttributeType::UNDEFINED => Ok(()),
        _ => Err(Fail::invalid(format!(
            "the attribute `{}` is not of the type {want:?}",
            a.name
        ))),
    }
}
