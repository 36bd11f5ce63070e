//! MLIR text to an ELF object: conversion to LLVM IR, the few LLVM passes that
//! matter, and code emission. One path for every use (DESIGN §5).

use super::{CodegenError, Dump, module_text};
use crate::CpuTarget;
use inkwell::OptimizationLevel;
use inkwell::context::Context as LlvmContext;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module as LlvmModule;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};
use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::pass::{Pass, PassManager};

/// The LLVM passes. Full -O3 changed kernels' speed by −4…+5 % and doubled
/// compile time; LLVM aborts without `no-verify-fixpoint`.
const LLVM_PASSES: &str = "function(instcombine<no-verify-fixpoint>,early-cse,loop-mssa(licm),instcombine<no-verify-fixpoint>)";

pub(super) fn compile(functions: &[String], target: &CpuTarget) -> Result<Vec<u8>, CodegenError> {
    with_llvm(functions, target, |module, machine| {
        let buffer = machine
            .write_to_memory_buffer(module, FileType::Object)
            .map_err(|e| CodegenError {
                stage: "code emission",
                message: e.to_string(),
            })?;
        Ok(bytes(&buffer))
    })
}

pub(super) fn dump(
    functions: &[String],
    target: &CpuTarget,
    what: Dump,
) -> Result<String, CodegenError> {
    with_llvm(functions, target, |module, machine| {
        if what == Dump::Llvm {
            return Ok(module.print_to_string().to_string());
        }
        let buffer = machine
            .write_to_memory_buffer(module, FileType::Assembly)
            .map_err(|e| CodegenError {
                stage: "code emission",
                message: e.to_string(),
            })?;
        Ok(String::from_utf8_lossy(&bytes(&buffer)).into_owned())
    })
}

fn bytes(buffer: &MemoryBuffer) -> Vec<u8> {
    // inkwell's slice includes the terminating zero that LLVM appends.
    buffer.as_slice()[..buffer.get_size()].to_vec()
}

fn with_llvm<T>(
    functions: &[String],
    target: &CpuTarget,
    f: impl FnOnce(&LlvmModule, &TargetMachine) -> Result<T, CodegenError>,
) -> Result<T, CodegenError> {
    CONTEXT.with(|context| with_context(context, functions, target, f))
}

thread_local! {
    // Making one costs more than translating a small kernel; one a thread also keeps
    // what it interns (types, attributes) for the kernels that follow.
    static CONTEXT: Context = mlir_context();
}

fn with_context<T>(
    context: &Context,
    functions: &[String],
    target: &CpuTarget,
    f: impl FnOnce(&LlvmModule, &TargetMachine) -> Result<T, CodegenError>,
) -> Result<T, CodegenError> {
    let text = module_text(functions);
    let mut module = Module::parse(context, &text).ok_or_else(|| CodegenError {
        stage: "MLIR parsing",
        message: "the built module does not parse".into(),
    })?;
    let passes = PassManager::new(context);
    for create in [
        mlir_sys::mlirCreateConversionSCFToControlFlowPass
            as unsafe extern "C" fn() -> mlir_sys::MlirPass,
        mlir_sys::mlirCreateConversionConvertVectorToLLVMPass,
        mlir_sys::mlirCreateConversionConvertFuncToLLVMPass,
        mlir_sys::mlirCreateConversionArithToLLVMConversionPass,
        mlir_sys::mlirCreateConversionConvertControlFlowToLLVMPass,
        mlir_sys::mlirCreateConversionReconcileUnrealizedCastsPass,
    ] {
        // SAFETY: each function creates a pass of MLIR's own.
        passes.add_pass(unsafe { Pass::from_raw_fn(create) });
    }
    passes.run(&mut module).map_err(|e| CodegenError {
        stage: "conversion to LLVM",
        message: e.to_string(),
    })?;
    let llvm = LlvmContext::create();
    // SAFETY: the operation is a valid builtin module of the LLVM dialect, and
    // the context outlives the module that is made in it.
    let raw = unsafe {
        mlir_sys::mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), llvm.raw() as _)
    };
    if raw.is_null() {
        return Err(CodegenError {
            stage: "translation to LLVM IR",
            message: "no module came out".into(),
        });
    }
    // SAFETY: `raw` was just created in `llvm` and is owned by no one else.
    let module = unsafe { LlvmModule::new(raw as _) };
    let machine = machine(target)?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    module
        .run_passes(LLVM_PASSES, &machine, PassBuilderOptions::create())
        .map_err(|e| CodegenError {
            stage: "LLVM passes",
            message: e.to_string(),
        })?;
    f(&module, &machine)
}

fn machine(target: &CpuTarget) -> Result<TargetMachine, CodegenError> {
    let fail = |message: String| CodegenError {
        stage: "target selection",
        message,
    };
    Target::initialize_x86(&InitializationConfig::default());
    let triple = TargetTriple::create("x86_64-unknown-linux-gnu");
    let llvm_target = Target::from_triple(&triple).map_err(|e| fail(e.to_string()))?;
    llvm_target
        .create_target_machine(
            &triple,
            &target.cpu,
            &target.features,
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Small,
        )
        .ok_or_else(|| fail(format!("LLVM has no machine for {}", target.name)))
}

/// A context with the dialects that kernels use, and no other.
fn mlir_context() -> Context {
    let registry = DialectRegistry::new();
    // SAFETY: each handle is a static dialect handle; the registry is alive.
    unsafe {
        for handle in [
            mlir_sys::mlirGetDialectHandle__arith__(),
            mlir_sys::mlirGetDialectHandle__cf__(),
            mlir_sys::mlirGetDialectHandle__func__(),
            mlir_sys::mlirGetDialectHandle__scf__(),
            mlir_sys::mlirGetDialectHandle__vector__(),
            mlir_sys::mlirGetDialectHandle__llvm__(),
        ] {
            mlir_sys::mlirDialectHandleInsertDialect(handle, registry.to_raw());
        }
    }
    let context = Context::new();
    // A worker process compiles one kernel at a time: threads would only cost.
    context.enable_multi_threading(false);
    context.append_dialect_registry(&registry);
    // SAFETY: the context is alive.
    unsafe { mlir_sys::mlirRegisterAllLLVMTranslations(context.to_raw()) };
    context.load_all_available_dialects();
    context
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emit::{Elem, Emitter, Ty};

    fn saxpy(target: &CpuTarget) -> String {
        Emitter::kernel("saxpy", target, |e, k| {
            let ptr = Ty::scalar(Elem::Ptr);
            let x = e.load(k.args, ptr);
            let one = e.i64(1);
            let y_slot = e.offset(k.args, one, Elem::Ptr);
            let y = e.load(y_slot, ptr);
            let step = e.i64(16);
            e.for_loop(k.begin, k.end, step, &[], |e, i, _| {
                let left = e.sub(k.end, i);
                let mask = e.mask_first(left, 16);
                let (px, py) = (e.offset(x, i, Elem::F32), e.offset(y, i, Elem::F32));
                let ty = Ty::vector(Elem::F32, 16);
                let (a, b) = (e.load_masked(px, ty, mask), e.load_masked(py, ty, mask));
                let two = e.float(ty, 2.0);
                let r = e.fma(two, a, b);
                e.store_masked(r, py, mask);
                vec![]
            });
            e.int(Ty::scalar(Elem::I32), 0)
        })
    }

    #[test]
    fn a_kernel_becomes_an_object_at_every_level() {
        for target in [CpuTarget::x86_64_v3(), CpuTarget::x86_64_v4()] {
            let object = compile(&[saxpy(&target)], &target).unwrap();
            assert_eq!(&object[..4], b"\x7fELF");
            let asm = dump(&[saxpy(&target)], &target, Dump::Asm).unwrap();
            assert!(asm.contains("vfmadd"), "{asm}");
            assert_eq!(asm.contains("zmm"), target.vector_bits == 512);
        }
    }
}
