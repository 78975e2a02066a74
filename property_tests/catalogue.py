"""The catalogue of faults: mistakes that someone could make, and the test that finds each."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A mistake that someone could make.

    Attributes:
      name: what is wrong.
      file: of the package.
      right, wrong: a piece of its text that stands there once, and what takes its place.
      test: what must fail.
      audit: a second test that must fail, for faults that couple samples within a step.
    """

    name: str
    file: str
    right: str
    wrong: str
    test: str
    audit: str = ""


def _one(file: str) -> str:
    return f"_algorithms/{file}.py"


FAULTS = (
    Fault(
        "the samples' axis is mistaken for time in a contraction",
        "_learning/traces.py",
        "jax.vmap(fun, in_axes=1, axis_size=learner.batch_size)(factors)",
        "jax.vmap(fun, in_axes=1)(jax.tree.map(lambda x: x[:, ::-1], factors))",
        "tests/test_strategies.py::TestEveryModel::test_equals_python_over_samples_and_steps[GRUCell-vmap]",
    ),
    Fault(
        "a trace is summed over the samples",
        "_learning/traces.py",
        "    return learner.each(step)(params, trace, jacobians, signal, count)",
        "    new, record = learner.each(step)(params, trace, jacobians, signal, count)\n"
        "    mixed = jax.tree.map(lambda x: jnp.broadcast_to(x.sum(0), x.shape) if learner.lead else x, new)\n"
        "    return mixed, record",
        "tests/test_strategies.py::TestEveryModel::test_another_sample_changes[GRUCell-vmap-other numbers]",
        "tests/test_audit.py::TestRegistry::test_is_proved_independent[GRUCell-vmap]",
    ),
    Fault(
        "D_RTRL normalises over the batch",
        "_learning/traces.py",
        "    return learner.each(step)(params, trace, jacobians, signal, count)",
        "    new, record = learner.each(step)(params, trace, jacobians, signal, count)\n"
        "    if learner.lead and getattr(new, 'scales', None):\n"
        "        new = new._replace(scales=jax.tree.map(lambda x: jnp.full_like(x, x.max()), new.scales))\n"
        "    return new, record",
        "tests/test_d_rtrl.py::TestNormalisation::test_belongs_to_the_sample[conv1d-vmap]",
        "tests/test_audit.py::TestRegistry::test_traces_are_proved_independent[tutorial-D_RTRL-vmap]",
    ),
    Fault(
        "the trace is not forgotten at a reset",
        "_learning/task.py",
        "gone = jax.tree.map(jnp.zeros_like, jacobians.diagonals)",
        "gone = jacobians.diagonals",
        "tests/test_masks.py::TestFlags::test_one_of_them[reset-D_RTRL published]",
    ),
    Fault(
        "a reset keeps the states",
        "_learning/task.py",
        "select(data.reset, fresh._replace(keys=now.keys), now)",
        "select(data.reset, now, now)",
        "tests/test_masks.py::TestFlags::test_one_of_them[reset-ES_D_RTRL]",
    ),
    Fault(
        "a reset gives all of a sample's lives the same random numbers",
        "_learning/task.py",
        "select(data.reset, fresh._replace(keys=now.keys), now)",
        "select(data.reset, fresh, now)",
        "tests/test_masks.py::TestFlags::test_of_other_models[noisy-ES_D_RTRL]",
    ),
    Fault(
        "a mask gates the loss only",
        "_learning/task.py",
        "    return new if mask is None else select(mask, new, old)",
        "    return new",
        "tests/test_masks.py::TestFlags::test_one_of_them[mask-ES_D_RTRL]",
    ),
    Fault(
        "a masked step's derivatives reach the trace",
        "_learning/task.py",
        "jacobians = select(data.mask, jacobians, zeros._replace(diagonals=kept))",
        "jacobians = select(data.mask, jacobians, zeros)",
        "tests/test_masks.py::TestFlags::test_one_of_them[mask-D_RTRL published]",
    ),
    Fault(
        "a masked step runs on states that may be broken",
        "_learning/task.py",
        "return before if mask is None else select(mask, before, fresh)",
        "return before",
        "property_tests/test_poison.py::test_a_gradient[ES_D_RTRL-vmap-3]",
    ),
    Fault(
        "a masked output reaches the loss",
        "_learning/task.py",
        "select(mask, output, harmless(output))",
        "output",
        "tests/test_masks.py::TestMaskedSteps::test_an_output_that_has_no_direction",
    ),
    Fault(
        "the trace of a life that is over is multiplied by zero",
        "_learning/lives.py",
        "select((mask & is_first_life).any(0), trace, fresh)",
        "trace",
        "property_tests/test_poison.py::test_a_gradient[D_RTRL multi-step-vmap-3]",
    ),
    Fault(
        "the records of a life that is over are multiplied by zero",
        "_learning/lives.py",
        "select(is_last_life(steps), records, jax.tree.map(jnp.zeros_like, records))",
        "records",
        "property_tests/test_poison.py::test_a_gradient[D_RTRL published-vmap-3]",
    ),
    Fault(
        "a second derivative is taken of traces that are held constant",
        "_learning/traces.py",
        "return first_derivative(learner.each(parts, (0, 1), axes)(params, trace_before, records))",
        "return learner.each(parts, (0, 1), axes)(params, trace_before, records)",
        "tests/test_second_derivative.py::test_of_an_online_rule_is_refused",
    ),
    Fault(
        "squares of a norm overflow",
        "_learning/euclid.py",
        "return jax.lax.cond(is_exact, lambda: plain, lambda: measured(SCALED))",
        "return plain",
        "tests/test_precision.py::TestSums::test_norms_in_float32",
    ),
    Fault(
        "what is compiled keeps its learner",
        "_learning/step.py",
        "pair(learner.detached())",
        "pair(learner)",
        "tests/test_lifetime.py::TestMemory::test_nothing_outlives_the_last_reference",
    ),
    Fault(
        "samples on several devices are gathered",
        "_learning/traces.py",
        "array.swapaxes(0, 1) if jax.device_count() > 1 else array",
        "array",
        "tests/test_sharding.py::test_one_sum_over_the_devices",
    ),
    Fault(
        "two generators of a module draw the same numbers",
        "_sources/keys.py",
        "jax.random.fold_in(key, zlib.crc32(path.encode()))",
        "key",
        "tests/test_globals.py::TestGeneratorsOfAModule::test_each_sample_and_each_generator_draws_its_own",
    ),
    Fault(
        "the running index is stale",
        "_learning/online.py",
        "new = Carry(*done.states, trace=trace, update_count=start.update_count + 1)",
        "new = Carry(*done.states, trace=trace, update_count=start.update_count)",
        "tests/test_es_d_rtrl.py::TestLeakyNeuron::test_numbers_on_paper",
    ),
    Fault(
        "a random key is used again",
        "_learning/online.py",
        "new = Carry(*done.states, trace=trace, update_count=start.update_count + 1)",
        "new = Carry(*done.states._replace(keys=start.keys), trace=trace, update_count=start.update_count + 1)",
        "tests/test_strategies.py::TestEveryModel::test_equals_python_over_samples_and_steps[noisy-vmap]",
    ),
    Fault(
        "a random key is shared by the samples",
        "_learning/learner.py",
        "jax.vmap(lambda i: jax.random.fold_in(key, i))",
        "jax.vmap(lambda i: jax.random.fold_in(key, 0 * i))",
        "tests/test_strategies.py::TestRandomNumbers::test_random_states_differ_between_samples_and_keys",
    ),
    Fault(
        "a sum is taken for a mean",
        "_learning/sequence.py",
        'mean=reduction == "mean"',
        "mean=False",
        "tests/test_strategies.py::TestReduction::test_every_strategy",
    ),
    Fault(
        "a window begins one step early",
        "_learning/sequence.py",
        "steps.window(whole * length, left)",
        "steps.window(whole * length - 1, left)",
        "tests/test_d_rtrl.py::TestWindows::test_every_window_gives_the_same",
    ),
    Fault(
        "windows overlap by one step",
        "_learning/sequence.py",
        "add_gradients(state[1], window.gradients), start + length)",
        "add_gradients(state[1], window.gradients), start + length - 1)",
        "tests/test_strategies.py::TestRepresentatives::test_every_window",
    ),
    Fault(
        "a relation is dropped",
        _one("base"),
        "        for relation in program.relations:\n            if relation.name in factors.dys:",
        "        for relation in program.relations[1:]:\n            if relation.name in factors.dys:",
        "tests/test_strategies.py::TestEveryModel::test_equals_python_over_samples_and_steps[GRUCell-vmap]",
    ),
    Fault(
        "the second use of a weight takes the first's place",
        _one("base"),
        "total[path] = jax.tree.map(jnp.add, total[path], value) if path in total else value",
        "total[path] = value",
        "tests/test_strategies.py::TestEveryModel::test_equals_python_over_samples_and_steps[used_twice-vmap]",
    ),
    Fault(
        "a path within a step counts twice in the published rule",
        _one("base"),
        "        own = signal - fed\n    return own",
        "        own = signal - fed\n    return signal",
        "tests/test_es_d_rtrl.py::TestCascade",
    ),
    Fault(
        "D is transposed for two states in ES_D_RTRL",
        _one("es_d_rtrl"),
        "apply_matrix(diagonal, trace.dfs[link.name])",
        "apply_matrix(diagonal.swapaxes(-1, -2), trace.dfs[link.name])",
        "tests/test_es_d_rtrl.py::TestCascade",
    ),
    Fault(
        "the bias correction is one step late",
        _one("es_d_rtrl"),
        "return 1 - self.decay ** (n + 1)",
        "return 1 - self.decay ** (n + 2)",
        "tests/test_es_d_rtrl.py::TestLeakyNeuron::test_numbers_on_paper",
    ),
    Fault(
        "D is transposed for two states in D_RTRL",
        _one("_diagonal_window"),
        "before = apply_transposed(diagonal, adjoint)",
        "before = apply_matrix(diagonal, adjoint)",
        "tests/test_d_rtrl.py::TestExactness::test_equals_bptt",
    ),
    Fault(
        "the trace that came into a window is forgotten",
        _one("d_rtrl"),
        "{} if trace_before is None else _dense(program, params, trace_before, back)",
        "{}",
        "tests/test_d_rtrl.py::TestExactness::test_every_window",
    ),
    Fault(
        "the trace that goes out begins with the window",
        _one("_diagonal_window"),
        "        if trace_before is not None:\n            old",
        "        if False:\n            old",
        "tests/test_d_rtrl.py::TestExactness::test_every_window",
    ),
    Fault(
        "the instantaneous term is not normalised",
        _one("d_rtrl"),
        "{name: 1 / number for name, number in largest.items()}",
        "{name: jnp.ones_like(number) for name, number in largest.items()}",
        "tests/test_d_rtrl.py::TestClosedForms::test_in_numpy",
    ),
    Fault(
        "Hybrid takes the dearer trace",
        _one("hybrid"),
        "and ends > weight",
        "and ends < weight",
        "tests/test_hybrid.py::TestChoice::test_the_smaller_trace",
    ),
    Fault(
        "a unit's scale is lost",
        "_conform.py",
        "    return leaf.in_unit(unit)",
        "    return with_unit(mantissa(leaf), unit)",
        "tests/test_errors.py::TestConversions",
    ),
    Fault(
        "gather aliases: a repeated sample is the next one",
        "_carries.py",
        "    return _each_leaf(lambda leaf: leaf[rows], carry)",
        "    return _each_leaf(lambda leaf: leaf[jnp.sort(rows)], carry)",
        "tests/test_batch.py::TestCommutes::test_gather_then_step",
    ),
    Fault(
        "scatter adds to what stood there",
        "_carries.py",
        "leaf.at[rows].set(new)",
        "leaf.at[rows].add(new) if jnp.issubdtype(leaf.dtype, jnp.number) else leaf.at[rows].set(new)",
        "tests/test_batch.py::TestInverses::test_gather_scatter",
    ),
    Fault(
        "permute goes the other way",
        "_carries.py",
        "    return gather(carry, rows)",
        "    return gather(carry, jnp.argsort(rows))",
        "tests/test_batch.py::TestInverses::test_permute_and_back",
    ),
    Fault(
        "groups come in the order of a hash",
        "_reader/hidden.py",
        "for group in groups.values()), key=lambda group: group.name))",
        "for group in groups.values()), key=lambda group: hash(group.name)))",
        "tests/test_capture.py::TestDeterminism",
    ),
    Fault(
        "a weight under jax.checkpoint is not seen",
        "_reader/flat.py",
        '"remat", "remat2", "checkpoint"',
        '"none"',
        "tests/test_reader.py::TestSeenThrough::test_around_a_weight",
    ),
    Fault(
        "states lead to each other through a weight inside a branch",
        "_reader/hidden.py",
        "else without_weights(written, marks)",
        "else written",
        "tests/test_reader.py::TestInsideALoop::test_gradient_of_the_step",
    ),
    Fault(
        "a weight whose use has no trace gets no gradient either",
        "_reader/reading.py",
        "return not operations or any(use.relation is None for use in operations)",
        "return not operations",
        "tests/test_reader.py::TestInsideALoop::test_gradient_of_the_step",
    ),
    Fault(
        "every life of a sample starts alike",
        "_learning/steps.py",
        "fold(sample_keys, step))",
        "fold(sample_keys, 0 * step))",
        "tests/test_key.py::test_every_life_starts_differently",
    ),
    Fault(
        "manual leaves a delay's batch axis where the module has it",
        "_strategies/manual.py",
        "{**moved(own, axes, to_module=True), **first}",
        "{**own, **first}",
        "tests/test_strategies.py::TestEveryModel::test_equals_python_over_samples_and_steps[delayed-manual]",
    ),
    Fault(
        "samples that share a state are not moved apart by a mask",
        "_learning/sequence_fn.py",
        "if steps.have_flags else",
        "if False else",
        "tests/test_masks.py::TestFlags::test_of_samples_that_share_a_state",
    ),
    Fault(
        "manual runs samples that were moved apart with the pointer of one of them",
        "_strategies/manual.py",
        "(single.states.shared and not states.shared) or ",
        "",
        "tests/test_masks.py::TestApart::test_go_on_as_each_alone",
    ),
    Fault(
        "samples along a named axis are each alone on it",
        "_sources/capture.py",
        "along = 1 if self.axis_name is None else size",
        "along = 1",
        "tests/test_axis.py::TestGradients::test_equal_the_module_s_own_batch[ES_D_RTRL-vmap]",
    ),
    Fault(
        "the samples of a mapped convolution are kept apart by zeros alone",
        "_reader/written_out.py",
        """if params["feature_group_count"] > 1:""",
        """if params["feature_group_count"] > 0:""",
        "tests/test_mappable.py::TestConvolutions::test_what_is_no_number_stays_with_its_sample[conv_rates-D_RTRL-1]",
    ),
    Fault(
        "clipping scales up what is small",
        "_learning/clipping.py",
        "scales = jnp.minimum(1, bound",
        "scales = jnp.maximum(1, bound",
        "tests/test_norms.py::TestClippedGrad::test_a_large_bound_clips_nothing",
    ),
    Fault(
        "the Gram form leaves out products of different steps",
        "_learning/euclid.py",
        "((unit_x @ unit_x.T) * (unit_dy @ unit_dy.T)).sum()",
        "jnp.trace((unit_x @ unit_x.T) * (unit_dy @ unit_dy.T))",
        "tests/test_norms.py::TestSampleNorms::test_gram_form",
    ),
    Fault(
        "a stored number of a sparse matrix is taken for one of the output it is next to",
        "_reader/alignment.py",
        "out[axis] = Scattered(row, table[:, 0])",
        "out[axis] = Scattered(row, table[::-1, 0])",
        "tests/test_trace_sizes.py::test_equals_the_trace_of_every_output[sparse-published-vmap]",
    ),
    Fault(
        "the gradient by the trace of a shared kernel is that of one place",
        "_algorithms/_parameter_trace.py",
        "product.sum(tuple(range(len(relation.spread(leaf)))))",
        "product[(0,) * len(relation.spread(leaf))]",
        "tests/test_trace_sizes.py::test_equals_the_trace_of_every_output[image-published-vmap]",
    ),
    Fault(
        "a product that the output reads past the hidden states is forgotten",
        _one("base"),
        "    found = dict(signal.products)\n",
        "    found: dict[str, jax.Array] = {}\n",
        "tests/test_complete.py::test_d_rtrl_equals_backpropagation[the product past the state-2]",
    ),
    Fault(
        "an old state that the output reads is forgotten",
        _one("_diagonal_window"),
        "before if read is None else before + read",
        "before",
        "tests/test_complete.py::test_d_rtrl_equals_backpropagation[the old state-2]",
    ),
    Fault(
        "a weight with a use that has no trace gets the gradient of its other uses twice",
        _one("base"),
        "-sum(terms[1:], terms[0])",
        "0 * terms[0]",
        "tests/test_complete.py::test_everything_at_once[4-vmap]",
    ),
    Fault(
        "what the output reads of a fresh state counts for the life before",
        "_learning/online.py",
        "counted if data.reset is None else counted._replace(old=blanked(counted.old, ~data.reset))",
        "counted",
        "tests/test_complete.py::test_masks_and_resets[vmap]",
    ),
    Fault(
        "the gates of a product follow the hidden states of the first gate's order alone",
        "_reader/places.py",
        "    after[numbers[kept]] = np.flatnonzero(kept)",
        "    after[np.sort(numbers[kept])] = np.flatnonzero(kept)",
        "tests/test_function.py::test_equals_backpropagation[its elements turned round-vmap-2]",
    ),
    Fault(
        "the hidden Jacobian is not arranged as the elements of a product",
        _one("_diagonal_window"),
        "link.seen(adjoint)).sum(-1)",
        "link.seen(adjoint[..., ::-1, :])).sum(-1)",
        "tests/test_function.py::test_equals_backpropagation[gates-vmap-2]",
    ),
    Fault(
        "a recurrent product that is written by hand passes for an element-wise one",
        "_reader/marking.py",
        "if not is_element_wise(eqn) or self._copies(eqn):",
        "if not is_element_wise(eqn):",
        "tests/test_function.py::test_a_recurrent_product_by_hand_is_no_path_of_its_own",
    ),
    Fault(
        "the running index of BrainScale is not read",
        "_bridge.py",
        "jnp.asarray(algorithm.running_index.value, jnp.int32)",
        "jnp.zeros((), jnp.int32)",
        "tests/test_native.py::TestCompiledAlgorithm::test_written_and_read",
    ),
    Fault(
        "a trace goes through BrainTrace's products",
        "_sources/braintrace_marks.py",
        "return ELEMENT_WISE_USE if len(eqn.invars) == 1 else MIXING",
        "return ELEMENT_WISE_USE",
        "tests/test_braintrace.py::TestStructure::test_no_trace_goes_through_a_product_with_a_constant",
    ),
    Fault(
        "a module of both packages has the marks of BrainTrace alone",
        "_sources/braintrace_marks.py",
        "return _is_use(eqn) or self._others.is_use(eqn)",
        "return _is_use(eqn)",
        "tests/test_braintrace.py::TestStructure::test_a_module_of_both_packages_has_the_traces_of_both",
    ),
    Fault(
        "an array beside BrainTrace's operation does not learn",
        "_sources/braintrace_marks.py",
        "return path in self._weights or self._others.is_shared(path)",
        "return self._others.is_shared(path)",
        "tests/test_braintrace.py::TestStructure::test_uses_and_groups_are_those_of_its_compiler[braintrace.matmul]",
    ),
    Fault(
        "BrainTrace's operations inside loops keep their own batching",
        "_sources/braintrace_marks.py",
        "return [rewritten_inside(eqn, _plain) if _holds_operation(eqn) else eqn]",
        "return [eqn]",
        "tests/test_braintrace.py::TestStructure::test_an_operation_inside_a_loop",
    ),
    Fault(
        "an index out of range selects no row",
        "_sources/braintrace_marks.py",
        "return jnp.where((place >= 0) & (place < rows), chosen, jnp.nan)",
        "return chosen",
        "tests/test_braintrace.py::TestLookup::test_an_index_out_of_range_is_not_a_number",
    ),
    Fault(
        "an index below zero selects no row",
        "_sources/braintrace_marks.py",
        "place = jnp.where(index < 0, index + rows, index)[..., None]",
        "place = index[..., None]",
        "tests/test_braintrace.py::TestLookup::test_an_index_below_zero_counts_from_the_end",
    ),
    Fault(
        "what a use makes is looked through again",
        "_reader/marking.py",
        "if var in eqn.outvars and var not in self.made), None)",
        "if var in eqn.outvars), None)",
        "tests/test_braintrace.py::TestStructure::test_no_trace_goes_through_a_product_with_a_constant",
    ),
    Fault(
        "an axis in front of one sample stays with the data",
        "_reader/marking.py",
        "        if self.is_operation is not None:\n            inputs, results",
        "        if False:\n            inputs, results",
        "tests/test_braintrace.py::TestNumbers::test_strategies_are_interchangeable[braintrace.nn.Conv1d-manual]",
    ),
    Fault(
        "what a weight is made into is no weight",
        "_reader/marking.py",
        "            self.of.update(dict.fromkeys(eqn.outvars, leaves))",
        "            pass",
        "tests/test_braintrace.py::TestStructure::test_a_mask_belongs_to_the_use",
    ),
    Fault(
        "an axis that the next operation needs is part of a product",
        "_reader/marking.py",
        " or _adds_axes(var, readers[0].outvars[0]):",
        ":",
        "tests/test_braintrace.py::TestNumbers::test_strategies_are_interchangeable[braintrace.nn.ScaledWSLinear-manual]",
    ),
)
