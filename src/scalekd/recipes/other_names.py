"""Maps the names of settings in other tools to scalekd's, to suggest the right one for an unknown flag or recipe key.

The names are those of timm's train.py, Ultralytics, lightly-train, Lightning, Hugging Face's Trainer and torchvision's
references. `suggest` uses the table both for flags (`--img-size`) and for keys (`img_size`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from scalekd.errors import nearest

FLAGS_ONLY = ("output", "overwrite", "resume", "recipe", "check", "json")
"""Targets that are flags of commands but not recipe keys."""


class Meaning(NamedTuple):
    """The meaning of another tool's setting in scalekd.

    Attributes:
        names: Its names in other tools, separated by spaces.
        targets: Keys that may be meant; a command has only some of them.
        remark: A remark on the target's values.
        instead: What to do if the command has none of the targets. Keys are in backquotes.
    """

    names: str
    targets: tuple[str, ...] = ()
    remark: str = ""
    instead: str = ""


_PRECISION = "auto, bf16 or float32"
_AUGMENTATION = "`rand_augment` changes shapes and colours"

TABLE = (
    # Models and weights.
    Meaning("model arch architecture net network model_name student_model student_name student_arch",
            ("student", "backbone", "model")),
    Meaning("teacher_model teacher_name teacher_arch", ("teacher",)),
    Meaning("pretrained model_pretrained imagenet_pretrained", ("student_pretrained", "backbone_pretrained")),
    Meaning("weights checkpoint ckpt model_path model_weights pretrained_weights",
            ("student_weights", "teacher_weights", "backbone_weights", "weights")),
    Meaning("teacher_path teacher_ckpt teacher_checkpoint", ("teacher_weights",)),
    Meaning("student_path student_ckpt student_checkpoint initial_checkpoint init_weights finetune start_from",
            ("student_weights", "backbone_weights")),
    Meaning("model_kwargs model_args", ("student_args", "teacher_args", "backbone_args")),
    Meaning("dropout drop drop_rate drop_path drop_path_rate drop_block", ("student_args", "backbone_args"),
            "as '{drop_rate: 0.1, drop_path_rate: 0.1}'"),
    Meaning("num_classes nb_classes n_classes nc classes", ("num_classes", "classes"),
            instead="classes come from the data"),
    Meaning("freeze freeze_backbone freeze_layers linear_probe head_only", instead="all of a student is trained"),
    Meaning("layer_decay lr_mult layerwise_decay llrd", ("layer_decay",),
            instead="all layers have the same learning rate"),
    # Distillation and losses.
    Meaning("distillation_type distill_method distillation_method kd_method distiller", ("method",)),
    Meaning("distillation_alpha kd_weight kd_alpha kd_lambda distill_weight alpha lambda", ("logit_weight",)),
    Meaning("distillation_tau kd_temperature kd_t tau temp", ("temperature",)),
    Meaning("loss loss_fn criterion bce_loss bce", ("task_loss",)),
    Meaning("smoothing label_smoothing_factor ls", ("label_smoothing",)),
    Meaning("class_weight cls_weight cls_weights balanced sampler weighted_sampler balance_classes",
            ("class_weights",), instead="all images have the same weight; list images of rare classes several times"),
    # Data.
    Meaning("dataset data_dir data_path data_root dataset_path dataset_dir dataroot root train_data train_data_dir",
            ("data",)),
    Meaning("train_dir train_folder train_path", ("train_split",), "a name in the data's folder"),
    Meaning("val_dir val_folder val_path valid_split validation_split test_split test_dir eval_split", ("val_split",),
            "a name in the data's folder"),
    Meaning("val_ratio val_fraction val_percent split_ratio test_size", ("val_share",), "such as 0.1",
            instead="write a list or folder for each split"),
    Meaning("fraction subset limit_train_batches limit_val_batches overfit_batches max_samples max_train_samples",
            instead="write a list with fewer images"),
    Meaning("num_workers nw n_workers dataloader_num_workers j loader_workers", ("workers",)),
    Meaning("pin_mem pin_memory no_pin_mem prefetch_factor persistent_workers no_prefetcher use_multi_epochs_loader",
            instead="the loader sets this automatically"),
    # Images.
    Meaning("img_size imgsz image_size input_size img img_sz imsize size crop_size train_crop_size input_resolution",
            ("resolution", "crop", "sizes"), "the side in pixels"),
    Meaning("crop_pct center_crop_ratio", ("crop_fraction",)),
    Meaning("scale random_resized_crop_scale train_scale", ("crop_scale", "scale_range")),
    Meaning("ratio random_resized_crop_ratio aspect_ratio", ("crop_ratio",)),
    Meaning("hflip fliplr horizontal_flip flip_prob", ("flip",)),
    Meaning("aa auto_augment autoaugment randaugment randaug ra augment", ("rand_augment",), "as rand-m7-mstd0.5"),
    Meaning("reprob random_erase random_erasing erase_prob", ("erasing",)),
    Meaning("mixup_alpha mix_up", ("mixup",)),
    Meaning("cutmix_alpha cut_mix", ("cutmix",)),
    Meaning("mixup_prob mixup_switch_prob mixup_mode mixup_off_epoch cutmix_minmax cutmix_prob close_mosaic",
            instead="every batch is mixed by `mixup`, `cutmix`, or one of the two at random"),
    Meaning("remode recount resplit aug_splits aug_repeats jsd_loss", instead="`erasing` has no other setting"),
    Meaning("vflip flipud color_jitter colorjitter hsv_h hsv_s hsv_v degrees translate shear perspective mosaic "
            "copy_paste trivial_augment ta_wide augmix gaussian_blur grayscale_prob tta", instead=_AUGMENTATION),
    Meaning("no_aug no_augmentation", instead="set `crop_scale` to 1,1 and `flip` to 0"),
    Meaning("interpolation train_interpolation", instead="images are resized bicubically"),
    Meaning("mean std normalize", instead="each model normalises as its weights require"),
    # Optimisation.
    Meaning("epoch num_epochs n_epochs max_epochs epochs_num num_train_epochs total_epochs", ("epochs",)),
    Meaning("max_steps total_steps num_steps steps max_iters iterations", ("steps", "epochs")),
    Meaning("batch_size bs train_batch_size per_device_train_batch_size batch_size_per_gpu total_batch_size "
            "eval_batch_size validation_batch_size vb", ("batch",)),
    Meaning("accumulate grad_accum_steps gradient_accumulation_steps accumulate_grad_batches accum_iter accum_steps "
            "update_freq", ("micro_batch",), "images at once; gradients are accumulated up to the batch"),
    Meaning("learning_rate lr0 base_lr blr lr_base init_lr initial_lr peak_lr", ("lr",)),
    Meaning("lrf lr_min eta_min min_learning_rate final_lr", ("min_lr",), "a learning rate, not a fraction of lr"),
    Meaning("wd decay l2 weight_decay_rate", ("weight_decay",)),
    Meaning("opt optim optimiser", ("optimizer",)),
    Meaning("opt_eps opt_betas betas eps adam_beta1 adam_beta2 adam_epsilon momentum_decay nesterov",
            instead="the optimiser uses timm's defaults"),
    Meaning("sched scheduler lr_scheduler lr_scheduler_type lr_schedule lr_policy cos_lr cosine", ("schedule", "power"),
            instead="the schedule is the paper's"),
    Meaning("decay_epochs decay_milestones lr_steps step_size", ("milestones",)),
    Meaning("decay_rate lr_gamma lr_decay cooldown_epochs patience_epochs lr_cycle_mul lr_cycle_limit",
            instead="see `schedule`, `milestones` and `min_lr`"),
    Meaning("warmup lr_warmup_epochs warmup_ratio warmup_iters warmup_iterations num_warmup_steps warmup_t",
            ("warmup_epochs", "warmup_steps")),
    Meaning("warmup_lr_init warmup_bias_lr lr_warmup_decay", ("warmup_lr",)),
    Meaning("clip_grad clip_grad_norm gradient_clip_val gradient_clip max_grad_norm grad_clip clip_mode", ("clip",),
            "the largest norm"),
    Meaning("model_ema model_ema_decay ema_decay use_ema", ("ema",), "its decay, such as 0.9999"),
    Meaning("patience early_stopping early_stopping_patience early_stop stop_patience", ("patience",),
            instead="a run takes all of its `epochs`, because the learning rate ends there; set fewer"),
    Meaning("grad_checkpointing gradient_checkpointing use_checkpoint", ("micro_batch",), "a smaller one saves memory",
            instead="a smaller `micro_batch` or `batch` saves memory"),
    # Hardware.
    Meaning("amp native_amp apex_amp use_amp no_amp amp_dtype amp_level mixed_precision fp16 bf16 half dtype float16",
            ("precision",), _PRECISION),
    Meaning("device gpu cuda no_cuda cpu use_cpu", ("accelerator", "device", "devices")),
    Meaning("gpus num_gpus ngpus n_gpu gpu_ids device_ids nproc_per_node distributed num_processes", ("devices",),
            instead="this command uses one device"),
    Meaning("sync_bn sync_batchnorm split_bn dist_bn", ("batchnorm_over",), "process, all or a number of images"),
    Meaning("torchcompile torch_compile torchscript", ("compile",)),
    Meaning("local_rank rank world_size dist_url dist_backend num_nodes nnodes node_rank master_addr master_port",
            instead="start runs on several machines with torchrun, also under SLURM; see docs/cluster.md"),
    # Runs.
    Meaning("out out_dir output_dir save_dir save_path project name experiment exp_name run_name run_dir logdir "
            "log_dir default_root_dir work_dir workdir", ("output",)),
    Meaning("exist_ok overwrite_output_dir force", ("overwrite",)),
    Meaning("resume_from_checkpoint resume_from ckpt_path auto_resume continue", ("resume",)),
    Meaning("cfg config config_file config_path yaml", ("recipe",)),
    Meaning("dry_run fast_dev_run sanity_check num_sanity_val_steps", ("check",)),
    Meaning("random_seed manual_seed", ("seed",)),
    Meaning("deterministic benchmark", instead="the `seed` determines everything random"),
    Meaning("save_best best checkpoint_metric eval_metric load_best_model_at_end monitor metric_for_best_model",
            ("keep_best",), instead="the last weights are saved, because the learning rate ends there"),
    Meaning("save_top_k save_total_limit checkpoint_hist max_checkpoints", ("keep",)),
    Meaning("save_period save_every save_interval save_freq save_steps checkpoint_interval recovery_interval",
            ("checkpoint_minutes", "validate_every")),
    Meaning("eval_interval val_interval eval_every val_every eval_freq check_val_every_n_epoch eval_strategy "
            "validation_interval", ("validate_every",)),
    Meaning("log_interval log_every_n_steps logging_steps print_freq log_freq", ("log_every",)),
    Meaning("log_wandb wandb use_wandb wandb_project report_to", ("logger",), "wandb or mlflow"),
    Meaning("tensorboard plots save_plots",
            instead="a run writes tensorboard/ and metrics.jsonl; `scalekd report` creates a page from them"),
    Meaning("verbose quiet silent debug", instead="a run logs a line every `log_every` steps"),
    Meaning("eval eval_only test_only test val_only", instead="`scalekd evaluate` measures a model"),
    Meaning("topk top_k", ("top",), instead="top-1 and top-5 are measured"),
    Meaning("opset_version", ("opset",)),
    Meaning("quantize quantise", ("int8",)),
    Meaning("simplify dynamic dynamic_axes", instead="an ONNX file accepts any batch size"),
)  # fmt: skip

_BY_NAME = {name: meaning for meaning in TABLE for name in meaning.names.split()}


def suggest(word: str, known: Collection[str]) -> str:
    """Suggest what was meant by an unknown flag or recipe key, as the end of a message; empty if nothing is near.

    Args:
        word: The flag with its dashes, or the key.
        known: The flags of the command, or the keys of the recipe.
    """
    is_flag = word.startswith("-")
    plain = _plain(word)
    by_plain = {_plain(other): other for other in known}
    if plain not in _BY_NAME:
        own = nearest(plain, by_plain)
        if own is not None:
            return f"; did you mean {by_plain[own]!r}?"
        plain = nearest(plain, [name for name in _BY_NAME if abs(len(name) - len(plain)) <= 3]) or ""
    meaning = _BY_NAME.get(plain)
    if meaning is None:
        return ""
    available = [repr(by_plain[target]) for target in meaning.targets if target in by_plain]
    if available:
        return f"; did you mean {' or '.join(available)}?{f' ({meaning.remark})' if meaning.remark else ''}"
    if meaning.instead:
        return f"; not offered: {meaning.instead}"
    flags = [target for target in meaning.targets if target in FLAGS_ONLY]
    return f"; it is not a key but a flag, --{flags[0]}" if flags and not is_flag else ""


def _plain(word: str) -> str:
    return word.lstrip("-").replace("-", "_").lower()
