//! Launches what `kernels.json` describes on the PTX interpreter.
//!
//! DATA holds `names.json`, a list of kernels, and `NAME.K.bin`, the bytes of buffer K of
//! each; the results come as `NAME.out.bin`, the statuses and faults as `done.json`. Only results may be
//! written, and any fault of the interpreter is reported: accesses out of bounds, reads
//! of what nothing wrote, races, missing waits.

use kiln_runtime::device::{MAP_ALIGN, MAP_BYTES};
use kiln_runtime::sim::{Launch, Memory, Module, Swizzle, TensorMap, TensorType, Window, launch};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Launches the listed kernels; says how many.
pub fn run(folder: &Path, target: &str, data: &Path) -> Result<String, String> {
    let text = read_text(&folder.join("kernels.json"))?;
    let all: Value = serde_json::from_str(&text).map_err(|e| format!("kernels.json: {e}"))?;
    let ptx = read_text(&folder.join(format!("kernels.{target}.ptx")))?;
    let module = Module::parse(&ptx).map_err(|e| e.to_string())?;
    let status_bytes = whole(&all["status_bytes"])? as usize;
    let names = read_text(&data.join("names.json"))?;
    let names: Vec<String> =
        serde_json::from_str(&names).map_err(|e| format!("names.json: {e}"))?;
    let mut done = Map::new();
    for kernel in list(&all["kernels"])? {
        let name = kernel["name"].as_str().ok_or("a kernel without a name")?;
        // All must be there, also those too large to be launched here.
        for pass in list(&kernel["launches"][target]["passes"])? {
            let entry = pass["entry"].as_str();
            let entry = entry.ok_or(format!("{name} has no launch for {target}"))?;
            if module.kernel(entry).is_none() {
                return Err(format!("kernels.{target}.ptx lacks {entry}"));
            }
        }
        if names.iter().any(|n| n == name) {
            let of = Kernel {
                name,
                described: kernel,
                how: &kernel["launches"][target],
            };
            let said = match of.run(&module, status_bytes, data) {
                Ok(status) => json!({"status": status}),
                Err(fault) => json!({"fault": fault}),
            };
            done.insert(name.to_string(), said);
        }
    }
    if let Some(missing) = names.iter().find(|n| !done.contains_key(*n)) {
        return Err(format!("kernels.json lacks {missing}"));
    }
    let n = done.len();
    let path = data.join("done.json");
    std::fs::write(&path, Value::Object(done).to_string())
        .map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(format!("{n} kernels for {target} launched"))
}

fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn list(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().ok_or(format!("{value} is no list"))
}

fn whole(value: &Value) -> Result<i64, String> {
    value.as_i64().ok_or(format!("{value} is no integer"))
}

/// Three numbers of a launch.
fn three(value: &Value) -> Result<[u32; 3], String> {
    let all = list(value)?.iter().map(whole);
    let all = all.collect::<Result<Vec<i64>, _>>()?;
    let all: Vec<u32> = all.iter().filter_map(|&n| n.try_into().ok()).collect();
    all.try_into()
        .map_err(|_| format!("{value} is no three sizes"))
}

/// The tensor map of a tile of a buffer.
fn map(tile: &Value, buffers: &[u64]) -> Result<[u8; MAP_BYTES], String> {
    let sizes =
        |key: &str| -> Result<Vec<i64>, String> { list(&tile[key])?.iter().map(whole).collect() };
    let dtype = match tile["dtype"].as_str() {
        Some("f16") => TensorType::F16,
        Some("bf16") => TensorType::Bf16,
        Some("f32") => TensorType::F32,
        Some("i8" | "u8" | "f8e4m3fn" | "f8e5m2") => TensorType::U8,
        _ => return Err(format!("tiles of {}", tile["dtype"])),
    };
    let boxes: Vec<u32> = sizes("tile")?.iter().map(|&n| n as u32).collect();
    let address = buffers.get(whole(&tile["buffer"])? as usize);
    let map = TensorMap {
        dtype,
        address: *address.ok_or("a tile of no buffer")?,
        sizes: sizes("sizes")?.iter().map(|&n| n as u64).collect(),
        strides: sizes("strides")?
            .iter()
            .map(|&n| n as u64 * u64::from(dtype.bytes()))
            .collect(),
        steps: vec![1; boxes.len()],
        boxes,
        swizzle: Swizzle::B128,
        nan: false,
    };
    map.encode().map_err(|e| e.to_string())
}

struct Kernel<'a> {
    name: &'a str,
    described: &'a Value,
    how: &'a Value,
}

impl Kernel<'_> {
    /// Runs it over its files; gives the status.
    fn run(&self, module: &Module, status_bytes: usize, data: &Path) -> Result<i32, String> {
        let mut memory = Memory::new();
        let mut windows = vec![];
        let mut place = |memory: &mut Memory, bytes: &[u8], writable| {
            let at = memory.try_alloc(bytes.len()).map_err(|e| e.to_string())?;
            memory.write(at, bytes).map_err(|e| e.to_string())?;
            windows.push(Window {
                start: at,
                len: bytes.len() as u64,
                writable,
            });
            Ok::<u64, String>(at)
        };
        let mut words = vec![];
        let mut out = (0, 0);
        for (i, buffer) in list(&self.described["buffers"])?.iter().enumerate() {
            let path = data.join(format!("{}.{i}.bin", self.name));
            let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let is_out = buffer["role"] == "out";
            // Values that a selection takes: their indices are the result.
            let is_written = is_out || buffer["role"] == "taken";
            let at = place(&mut memory, &bytes, is_written)?;
            if is_out {
                out = (at, bytes.len());
            }
            words.push(at);
        }
        let status = place(&mut memory, &vec![0; status_bytes], true)?;
        let scratch = vec![0; whole(&self.how["scratch"])? as usize];
        words.push(status);
        words.push(place(&mut memory, &scratch, true)?);
        for param in list(&self.described["params"])? {
            words.push(whole(param)? as u64);
        }
        let mut params: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        for tile in list(&self.how["tiles"])? {
            params.resize(params.len().next_multiple_of(MAP_ALIGN), 0);
            params.extend(map(tile, &words)?);
        }
        for pass in list(&self.how["passes"])? {
            let how = Launch {
                grid: three(&pass["grid"])?,
                block: three(&pass["block"])?,
                cluster: three(&pass["cluster"])?,
                shared: whole(&pass["shared"])? as u32,
                windows: windows.clone(),
                ..Launch::default()
            };
            let entry = pass["entry"].as_str().and_then(|name| module.kernel(name));
            let entry = entry.ok_or("no such entry")?;
            launch(module, &mut memory, entry, &how, &params).map_err(|fault| fault.to_string())?;
        }
        let mut result = vec![0; out.1];
        memory.read(out.0, &mut result).map_err(|e| e.to_string())?;
        let path = data.join(format!("{}.out.bin", self.name));
        std::fs::write(&path, result).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut code = [0; 4];
        memory.read(status, &mut code).map_err(|e| e.to_string())?;
        Ok(i32::from_le_bytes(code))
    }
}
