//! CPU targets as data.

use serde::{Deserialize, Serialize};

/// A CPU level that code is generated for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuTarget {
    /// The name on the command line and in artifacts.
    pub name: String,
    /// LLVM's CPU name.
    pub cpu: String,
    /// LLVM's feature string.
    pub features: String,
    /// Bits of a vector register.
    pub vector_bits: u32,
    /// Vector registers.
    pub vector_registers: u32,
    /// Whether four products of a u8 and an i8 are summed by one instruction (VNNI).
    pub byte_dots: bool,
    /// Whether two products of bf16 are summed by one instruction (AVX512-BF16).
    pub bf16_dots: bool,
    /// Features that the machine must have, as `std::arch` names them.
    pub requires: Vec<String>,
}

/// What x86-64-v3 asks of a machine (the psABI's level, the parts in use).
const V3: &[&str] = &["avx2", "fma", "bmi1", "bmi2", "f16c", "lzcnt", "movbe"];
/// What x86-64-v4 adds.
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

impl CpuTarget {
    /// AVX2 and FMA: Haswell, Zen and later.
    pub fn x86_64_v3() -> CpuTarget {
        CpuTarget {
            name: "x86-64-v3".into(),
            cpu: "x86-64-v3".into(),
            features: String::new(),
            vector_bits: 256,
            vector_registers: 16,
            byte_dots: false,
            bf16_dots: false,
            requires: V3.iter().map(|s| s.to_string()).collect(),
        }
    }

    /// AVX-512: Skylake-SP, Ice Lake, Zen 4 and later.
    pub fn x86_64_v4() -> CpuTarget {
        CpuTarget {
            name: "x86-64-v4".into(),
            cpu: "x86-64-v4".into(),
            // Without this, LLVM prefers 256-bit registers for the generic level.
            features: "-prefer-256-bit".into(),
            vector_bits: 512,
            vector_registers: 32,
            byte_dots: false,
            bf16_dots: false,
            requires: V3.iter().chain(V4).map(|s| s.to_string()).collect(),
        }
    }

    /// AVX2 with AVX-VNNI: Alder Lake, Zen 5 and later.
    pub fn x86_64_v3_vnni() -> CpuTarget {
        CpuTarget {
            name: "x86-64-v3-vnni".into(),
            ..CpuTarget::x86_64_v3().with_byte_dots("avxvnni")
        }
    }

    /// AVX-512 with its VNNI: Cascade Lake, Ice Lake, Zen 4 and later.
    pub fn x86_64_v4_vnni() -> CpuTarget {
        CpuTarget {
            name: "x86-64-v4-vnni".into(),
            ..CpuTarget::x86_64_v4().with_byte_dots("avx512vnni")
        }
    }

    /// That with AVX512-BF16 too: Cooper Lake, Sapphire Rapids, Zen 4 and later.
    pub fn x86_64_v4_bf16() -> CpuTarget {
        CpuTarget {
            name: "x86-64-v4-bf16".into(),
            bf16_dots: true,
            ..CpuTarget::x86_64_v4_vnni().with("avx512bf16")
        }
    }

    fn with_byte_dots(self, feature: &str) -> CpuTarget {
        CpuTarget {
            byte_dots: true,
            ..self.with(feature)
        }
    }

    fn with(mut self, feature: &str) -> CpuTarget {
        let sign = if self.features.is_empty() { "+" } else { ",+" };
        self.features += &format!("{sign}{feature}");
        self.requires.push(feature.into());
        self
    }

    /// Every level, the best first.
    pub fn all() -> [CpuTarget; 5] {
        [
            CpuTarget::x86_64_v4_bf16(),
            CpuTarget::x86_64_v4_vnni(),
            CpuTarget::x86_64_v4(),
            CpuTarget::x86_64_v3_vnni(),
            CpuTarget::x86_64_v3(),
        ]
    }

    /// The level of this name; `cpu` and `host` mean the machine's own.
    pub fn by_name(name: &str) -> Option<CpuTarget> {
        match name {
            "cpu" | "host" => CpuTarget::host(),
            _ => CpuTarget::all().into_iter().find(|t| t.name == name),
        }
    }

    /// The highest level that this machine has; none below x86-64-v3.
    pub fn host() -> Option<CpuTarget> {
        CpuTarget::all().into_iter().find(CpuTarget::runs_here)
    }

    /// Lanes of f32 in a register.
    pub fn f32_lanes(&self) -> u32 {
        self.vector_bits / 32
    }

    /// Whether this machine has what the level asks.
    pub fn runs_here(&self) -> bool {
        self.requires.iter().all(|f| machine_has(f))
    }
}

#[cfg(target_arch = "x86_64")]
fn machine_has(feature: &str) -> bool {
    match feature {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "bmi1" => is_x86_feature_detected!("bmi1"),
        "bmi2" => is_x86_feature_detected!("bmi2"),
        "f16c" => is_x86_feature_detected!("f16c"),
        "lzcnt" => is_x86_feature_detected!("lzcnt"),
        "movbe" => is_x86_feature_detected!("movbe"),
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512cd" => is_x86_feature_detected!("avx512cd"),
        "avx512dq" => is_x86_feature_detected!("avx512dq"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512bf16" => is_x86_feature_detected!("avx512bf16"),
        "avx512vnni" => is_x86_feature_detected!("avx512vnni"),
        "avxvnni" => is_x86_feature_detected!("avxvnni"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn machine_has(_: &str) -> bool {
    false
}
