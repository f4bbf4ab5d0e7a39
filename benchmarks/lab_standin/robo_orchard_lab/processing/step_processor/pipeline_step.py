"""Stand-in: the forward and backward passes of a batch."""


class StepProcessorFromCallable:
    def __init__(self, forward_fn):
        self.forward = forward_fn

    def __call__(self, pipeline_hooks, on_batch_hook_args, model):
        batch = on_batch_hook_args.batch
        with pipeline_hooks.begin(
            "on_model_forward",
            arg=on_batch_hook_args.copy_with_updates(batch=batch),
        ) as on_forward_hook_args:
            outputs, loss = self.forward(model, batch)
            on_forward_hook_args.model_outputs = outputs
        with pipeline_hooks.begin(
            "on_model_backward",
            arg=on_batch_hook_args.copy_with_updates(
                batch=batch, model_outputs=outputs
            ),
        ) as on_backward_hook_args:
            on_backward_hook_args.accelerator.backward(loss)
        on_batch_hook_args.model_outputs = outputs
