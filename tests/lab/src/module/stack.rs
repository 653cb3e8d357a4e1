//! How much stack the object uses: the deepest path through its call graph, read off its instructions.
//!
//! There is no indirect call in the object (`inspect` sees to it), so the graph is complete. Frames are
//! bounded from above: every push and every subtraction of a function counts, whether or not they happen
//! together.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};

/// One function.
struct Function {
    name: String,
    start: u64,
    end: u64,
    /// Bytes that it puts on the stack itself, its return address included.
    frame: u64,
    /// Starts of the functions that it calls, or jumps to.
    calls: Vec<u64>,
}

/// The most stack, in bytes, that any function of the object needs with all it calls, and the names on the
/// way.
pub(super) fn deepest(file: &object::File<'_>) -> Result<(u64, Vec<String>), String> {
    let functions = functions(file)?;
    let mut known = BTreeMap::new();
    let mut worst = (0, Vec::new());
    for start in functions.keys() {
        let depth = depth(&functions, *start, &mut Vec::new(), &mut known)?;
        if depth.0 > worst.0 {
            worst = depth;
        }
    }
    Ok(worst)
}

type Depth = (u64, Vec<String>);

fn depth(
    functions: &BTreeMap<u64, Function>,
    start: u64,
    path: &mut Vec<u64>,
    known: &mut BTreeMap<u64, Depth>,
) -> Result<Depth, String> {
    if let Some(depth) = known.get(&start) {
        return Ok(depth.clone());
    }
    let Some(function) = functions.get(&start) else {
        return Err(format!("a call to {start:#x}, where no function is"));
    };
    if path.contains(&start) {
        return Err(format!("recursion through {}", function.name));
    }
    path.push(start);
    let mut below: Depth = (0, Vec::new());
    for call in &function.calls {
        let depth = depth(functions, *call, path, known)?;
        if depth.0 > below.0 {
            below = depth;
        }
    }
    path.pop();
    let mut names = vec![format!("{} ({})", function.name, function.frame)];
    names.extend(below.1);
    let result = (function.frame + below.0, names);
    known.insert(start, result.clone());
    Ok(result)
}

fn functions(file: &object::File<'_>) -> Result<BTreeMap<u64, Function>, String> {
    let mut functions = BTreeMap::new();
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        let code = section.data().map_err(|error| error.to_string())?;
        let relocations: BTreeMap<u64, Option<u64>> = section
            .relocations()
            .map(|(offset, relocation)| {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    return (offset, None);
                };
                // A call's operand is relative to its end, four bytes on: the addend makes up for it.
                let target = file
                    .symbol_by_index(index)
                    .ok()
                    .filter(|symbol| !symbol.is_undefined())
                    .map(|symbol| {
                        symbol
                            .address()
                            .wrapping_add_signed(relocation.addend().wrapping_add(4))
                    });
                (offset, target)
            })
            .collect();
        for symbol in file.symbols() {
            if symbol.section_index() != Some(section.index())
                || symbol.kind() != SymbolKind::Text
                || symbol.size() == 0
            {
                continue;
            }
            let (start, end) = (symbol.address(), symbol.address() + symbol.size());
            let from = usize::try_from(start).map_err(|error| error.to_string())?;
            let to = usize::try_from(end).map_err(|error| error.to_string())?;
            let body = code
                .get(from..to)
                .ok_or("a function that reaches past its section")?;
            let mut function = Function {
                name: symbol.name().unwrap_or("?").to_owned(),
                start,
                end,
                // The return address.
                frame: 8,
                calls: Vec::new(),
            };
            for instruction in &mut Decoder::with_ip(64, body, start, DecoderOptions::NONE) {
                function.frame += pushed(&instruction);
                function
                    .calls
                    .extend(callee(&instruction, &relocations, &function));
            }
            functions.insert(start, function);
        }
    }
    Ok(functions)
}

/// Bytes that an instruction puts on the stack.
fn pushed(instruction: &Instruction) -> u64 {
    match instruction.mnemonic() {
        Mnemonic::Push => 8,
        Mnemonic::Sub if instruction.op0_register() == Register::RSP => match instruction.op1_kind() {
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => instruction.immediate(1),
            // An amount known only at run time has no bound.
            _ => u64::from(u32::MAX),
        },
        _ => 0,
    }
}

/// The function of this object that an instruction goes to, if it leaves its own.
fn callee(
    instruction: &Instruction,
    relocations: &BTreeMap<u64, Option<u64>>,
    function: &Function,
) -> Option<u64> {
    let flow = instruction.flow_control();
    if !matches!(
        flow,
        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
    ) {
        return None;
    }
    // The operand is the last four bytes of a near call or branch.
    let target = match relocations.get(&(instruction.next_ip().wrapping_sub(4))) {
        Some(target) => (*target)?,
        None => instruction.near_branch_target(),
    };
    let inside = (function.start..function.end).contains(&target);
    (flow == FlowControl::Call || !inside).then_some(target)
}
