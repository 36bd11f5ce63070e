//! Slimming: the protobuf bytes of a model without its large constants.
//!
//! The protobuf crate copies every `raw_data`. A walk over the wire format
//! replaces those that are long by a pointer into the file (two fields of a
//! number that ONNX does not use), so that what is parsed is small and weights
//! stay mapped. The walk also checks every length before anything is allocated
//! and bounds nesting and the number of messages, so the parser behind it meets
//! no surprise.

/// Constants at least this long stay in the file.
const KEEP_MAPPED: usize = 512;
/// Nesting of messages, as the protobuf crate allows.
const MAX_DEPTH: usize = 96;
/// Messages in one model: each costs some hundred bytes when parsed.
const MAX_MESSAGES: usize = 8_000_000;
/// The field that holds where `raw_data` was: offset and length as one field
/// each time, in that order.
pub(crate) const MOVED_FIELD: u32 = 18_999;

/// Messages that are walked into; others are copied whole.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Function,
}

/// What to do with a field of a message.
enum Field {
    Enter(Kind),
    Raw,
    Drop,
    Copy,
}

fn field(kind: Kind, number: u32) -> Field {
    match (kind, number) {
        (Kind::Model, 7) => Field::Enter(Kind::Graph),
        (Kind::Model, 25) => Field::Enter(Kind::Function),
        // Training information and documentation are not read.
        (Kind::Model, 20 | 6) | (Kind::Graph, 10) | (Kind::Node, 6) => Field::Drop,
        (Kind::Graph, 1) | (Kind::Function, 7) => Field::Enter(Kind::Node),
        (Kind::Graph, 5) => Field::Enter(Kind::Tensor),
        (Kind::Graph, 15) => Field::Enter(Kind::Sparse),
        (Kind::Node, 5) | (Kind::Function, 11) => Field::Enter(Kind::Attribute),
        (Kind::Attribute, 5 | 10) => Field::Enter(Kind::Tensor),
        (Kind::Attribute, 6 | 11) => Field::Enter(Kind::Graph),
        (Kind::Attribute, 22 | 23) => Field::Enter(Kind::Sparse),
        (Kind::Sparse, 1 | 2) => Field::Enter(Kind::Tensor),
        (Kind::Tensor, 9) => Field::Raw,
        (_, MOVED_FIELD) => Field::Drop,
        _ => Field::Copy,
    }
}

/// The slim copy of a model, or what is wrong with the bytes.
pub(crate) fn slim(file: &[u8]) -> Result<Vec<u8>, String> {
    walk(file, false)
}

/// The same with documentation and training information: a model to be written again.
pub(crate) fn slim_whole(file: &[u8]) -> Result<Vec<u8>, String> {
    walk(file, true)
}

fn walk(file: &[u8], whole: bool) -> Result<Vec<u8>, String> {
    let mut walk = Walk {
        file,
        whole,
        messages: 0,
    };
    walk.message(Kind::Model, 0, file.len(), 0)
}

struct Walk<'a> {
    file: &'a [u8],
    /// Whether what is not read is kept.
    whole: bool,
    messages: usize,
}

impl Walk<'_> {
    fn message(
        &mut self,
        kind: Kind,
        start: usize,
        end: usize,
        depth: usize,
    ) -> Result<Vec<u8>, String> {
        self.messages += 1;
        if depth > MAX_DEPTH {
            return Err(format!(
                "messages nest deeper than {MAX_DEPTH} at byte {start}"
            ));
        }
        if self.messages > MAX_MESSAGES {
            return Err(format!("there are more than {MAX_MESSAGES} messages"));
        }
        let mut out = vec![];
        let mut at = start;
        while at < end {
            let from = at;
            let tag = self.varint(&mut at, end)?;
            let number = u32::try_from(tag >> 3)
                .ok()
                .filter(|&n| n > 0)
                .ok_or_else(|| format!("byte {from} starts no field"))?;
            let body = match tag & 7 {
                0 => {
                    self.varint(&mut at, end)?;
                    None
                }
                1 => {
                    at += 8;
                    None
                }
                5 => {
                    at += 4;
                    None
                }
                2 => {
                    let len = self.varint(&mut at, end)?;
                    let body = at;
                    let fits = usize::try_from(len).is_ok_and(|len| len <= end - at);
                    if !fits {
                        return Err(format!(
                            "the field at byte {from} is {len} bytes long, {} are left",
                            end - at
                        ));
                    }
                    at += len as usize;
                    Some(body)
                }
                wire => return Err(format!("byte {from} has the unknown wire type {wire}")),
            };
            if at > end {
                return Err(format!("the field at byte {from} is cut off"));
            }
            match (field(kind, number), body) {
                (Field::Drop, _) if !self.whole || number == MOVED_FIELD => {}
                (Field::Enter(inner), Some(body)) => {
                    let slim = self.message(inner, body, at, depth + 1)?;
                    put_varint(&mut out, tag);
                    put_varint(&mut out, slim.len() as u64);
                    out.extend_from_slice(&slim);
                }
                (Field::Raw, Some(body)) if at - body >= KEEP_MAPPED => {
                    for value in [body, at - body] {
                        put_varint(&mut out, (MOVED_FIELD as u64) << 3);
                        put_varint(&mut out, value as u64);
                    }
                }
                _ => out.extend_from_slice(&self.file[from..at]),
            }
        }
        Ok(out)
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, String> {
        let from = *at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            if *at >= end {
                return Err(format!("the number at byte {from} is cut off"));
            }
            let byte = self.file[*at];
            *at += 1;
            if shift < 64 {
                value |= ((byte & 0x7f) as u64) << shift;
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(format!("the number at byte {from} is too long"))
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_protobuf::{GraphProto, Message, ModelProto, TensorProto};

    #[test]
    fn long_constants_move_out_and_the_rest_stays() {
        let tensor = |n: usize| TensorProto {
            name: format!("w{n}"),
            raw_data: (0..n).map(|i| i as u8).collect(),
            ..Default::default()
        };
        let graph = GraphProto {
            name: "g".into(),
            doc_string: "gone".into(),
            initializer: vec![tensor(4000), tensor(8)],
            ..Default::default()
        };
        let model = ModelProto {
            ir_version: 8,
            graph: Some(graph).into(),
            ..Default::default()
        };
        let file = model.write_to_bytes().unwrap();
        let slim = slim(&file).unwrap();
        assert!(slim.len() < 100);
        let back = ModelProto::parse_from_bytes(&slim).unwrap();
        assert_eq!((back.ir_version, &*back.graph.name), (8, "g"));
        assert_eq!(back.graph.initializer[1].raw_data, tensor(8).raw_data);
        let moved = crate::onnx::tensor::moved_range(&back.graph.initializer[0]).unwrap();
        assert_eq!(file[moved], tensor(4000).raw_data);
    }

    #[test]
    fn cut_and_endless_bytes_are_errors() {
        // Graph, node and so on nested in themselves: attribute 6 is a graph.
        let mut deep = vec![];
        for i in 0..400 {
            let tag = [0x0a, 0x32, 0x2a][i % 3];
            let mut outer = vec![tag];
            put_varint(&mut outer, deep.len() as u64);
            outer.extend(&deep);
            deep = outer;
        }
        let mut model = vec![0x3a];
        put_varint(&mut model, deep.len() as u64);
        model.extend(&deep);
        assert!(slim(&model).unwrap_err().contains("nest deeper"));
        assert!(slim(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
        assert!(slim(&[0xff; 32]).is_err());
        assert!(slim(&[0x0d, 0]).is_err());
    }
}
