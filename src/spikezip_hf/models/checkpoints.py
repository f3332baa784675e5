# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What a saved model is: sealed weights, config, code, tokenizer or image processor, and model card, in one folder."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file, logging

from .checkpoint_contents import network_fields
from .checkpoint_files import bind_shards, check_seal, locked, moved_in_whole, read_index, seal

logger = logging.get_logger(__name__)

# Arguments of from_pretrained that say where a checkpoint is.
LOCATION = ("cache_dir", "local_files_only", "token", "revision", "subfolder")
# Arguments of push_to_hub.
HUB = ("repo_id", "private", "revision", "create_pr", "commit_message", "commit_description", "tags")
# Files that tell that a tokenizer or an image processor is there, and what loads it.
PROCESSORS = {"tokenizer_config.json": AutoTokenizer, "preprocessor_config.json": AutoImageProcessor}


def adapted(model: PreTrainedModel) -> bool:
    """Whether transformers has put a PEFT adapter into a model: what it then saves is the adapter alone."""
    return getattr(model, "_hf_peft_config_loaded", False)


def plain_class(cls: type) -> Any:
    """The class of a model as it was written: FSDP 2 makes another one of it, in a module of torch."""
    name = cls.__name__.removeprefix("FSDP")
    return next((parent for parent in cls.__mro__ if parent.__name__ == name), cls)


def only_snapshot(repo_id: str) -> str | None:
    """The commit of a Hub id of which the cache holds one alone: the one that a model was loaded from.

    A model does not know its revision, and another one's tokenizer or image processor might give other answers.
    """
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}", "snapshots")
    commits = os.listdir(snapshots) if repo_id and snapshots.is_dir() else []
    return commits[0] if len(commits) == 1 else None


def located(source: str) -> str:
    """A source that stays what it is when the working directory changes."""
    return os.path.abspath(source) if os.path.isdir(source) else source


def copy_code(cls: type, folder: Path) -> None:
    """Copy the file of a class and its siblings, as transformers does for classes that are not wrapped."""
    source = str(sys.modules[cls.__module__].__file__)
    for path in (source, *get_relative_import_files(source)):
        shutil.copy(path, folder)


def find_file(source: str, name: str, **location: Any) -> str | None:
    """Path of a file of a checkpoint, downloaded if need be; None if there is none."""
    return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **location)


class CheckpointModel(PreTrainedModel):
    """A `PreTrainedModel` that is loaded and saved with all that belongs to it."""

    # Where the model, or the network it was made from, was loaded from, and arguments to load more from there.
    _home: tuple[str, Mapping[str, Any]] | None = None
    _processing_class: Any = None
    _processor_sought = False

    @property
    def processing_class(self) -> Any:
        """The tokenizer or image processor to be saved with the model.

        The one that was set here, or else the one beside the checkpoint that this model, or the network it was made
        from, was loaded from; None if there is none.
        """
        if self._processing_class is None and self._home is not None and not self._processor_sought:
            source, location = self._home
            try:
                for name, auto_class in PROCESSORS.items():
                    if find_file(source, name, **location) is not None:
                        self._processing_class = auto_class.from_pretrained(source, **location)
                        break
                self._processor_sought = True
            except Exception as error:  # whatever a broken file makes them raise; weights are still to be saved
                logger.warning(
                    f"The tokenizer or image processor of {source} cannot be loaded "
                    f"({type(error).__name__}: {error}), "
                    "so it is not saved with the model: pass it as processing_class."
                )
        return self._processing_class

    @processing_class.setter
    def processing_class(self, value: Any) -> None:
        self._processing_class = value

    def inherit_processor(self, source: PreTrainedModel) -> None:
        """Have the processor of another model, which this one is made from."""
        if isinstance(source, CheckpointModel):
            self._processing_class, self._home = source._processing_class, source._home
        elif os.path.isdir(source.config._name_or_path):
            self._home = (located(source.config._name_or_path), {})
        elif commit := only_snapshot(source.config._name_or_path):
            self._home = (source.config._name_or_path, {"revision": commit})

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without the token that the model was loaded with."""
        state = dict(self.__dict__)
        if self._home is not None:
            source, location = self._home
            state["_home"] = (source, {name: value for name, value in location.items() if name != "token"})
        return state

    @property
    def home_folder(self) -> str | None:
        """The local folder that this model, or the network it was made from, was loaded from."""
        return self._home[0] if self._home is not None and os.path.isdir(self._home[0]) else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """`PreTrainedModel.from_pretrained`, from safetensors only, and from files that are what was written.

        A folder that another process is saving to is read before or after that, never in between.

        Raises:
            OSError: a file of weights is cut off or altered, or a shard is of another checkpoint.
            ValueError: `use_safetensors=False`: nothing is unpickled here.
        """
        folder = os.path.join(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        with locked(folder, shared=True):
            return cls.load(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def load(cls, pretrained_model_name_or_path, *args, **kwargs):
        """What `from_pretrained` does while nobody writes there."""
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors must be True: nothing is unpickled here. Convert the file first.")
        kwargs["use_safetensors"] = True
        source = pretrained_model_name_or_path and str(pretrained_model_name_or_path)
        location = {key: kwargs[key] for key in LOCATION if kwargs.get(key) is not None}
        files = (source, kwargs.get("variant"), location)
        if source is not None and os.path.isdir(source):
            list(weight_files(*files))  # an index may name files anywhere on this disk
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (SafetensorError, RuntimeError, ValueError):
            for path, digest in weight_files(*files):
                check_seal(path, digest)  # a damaged file is the better explanation
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if source is not None:
            for path, digest in weight_files(*files):
                check_seal(path, digest)
                model.check_file(path)
            model._home = (located(source), location)
        align(model)
        return loaded

    def check_file(self, path: str) -> None:
        """Raise ValueError if a file of weights, which is whole, is none of this network's."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *,
        processing_class: Any = None,
        results: Mapping | Sequence[Mapping] | None = None,
        card: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save all that others need: sealed weights, config, code, tokenizer or image processor, and a model card.

        Files are written aside and moved in at the end: after an error, or Ctrl-C, the folder is what it was. A
        README.md that somebody wrote is kept; one that was generated is written anew.

        Args:
            save_directory: folder to save to.
            processing_class: tokenizer or image processor; `self.processing_class` by default.
            results: for the card, what `spikezip evaluate` or a recipe wrote, or its path; by default the results.json
                in the folder, or in the one that the model was loaded from, if it is of these very weights.
            card: metadata for the card that nobody can know from the model: `license`, `language`, `name`, ...
            others: as for `PreTrainedModel.save_pretrained`; with `push_to_hub`, as for `self.push_to_hub`, too.

        Raises:
            OSError: the folder cannot be written.
        """
        hub = {name: kwargs.pop(name) for name in HUB if name in kwargs}
        # Other processes only take part in gathering.
        if not self.should_save_on_this_rank(is_main_process) or kwargs.get("distributed_checkpoint"):
            return super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        processor = self.processing_class if processing_class is None else processing_class
        with moved_in_whole(save_directory) as aside:
            super().save_pretrained(aside, is_main_process, state_dict, **kwargs)
            if plain_class(type(self)) is not type(self):
                copy_code(plain_class(type(self)), aside)
            network = network_fields(self.config)
            bind_shards(aside, {path.name: seal(path, network) for path in aside.glob("*.safetensors")})
            if processor is not None:
                processor.save_pretrained(aside)
            if not adapted(self):
                self.write_card(aside, save_directory, results, state_dict, **(card or {}))
        if push_to_hub:
            name = hub.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            saving = {**kwargs, "processing_class": processor, "state_dict": state_dict, "card": card}
            self.push_to_hub(name, results=results, token=kwargs.get("token"), saving=saving, **hub)

    @classmethod
    def is_remote_code(cls) -> bool:
        """Whether transformers copies the code beside what is saved: not of the class that FSDP 2 made."""
        return plain_class(cls) is cls and super().is_remote_code()

    def write_card(self, folder, destination, results=None, state_dict=None, **fields) -> None:
        """Write the model card into `folder`, unless somebody has written another in `destination`."""
        try:
            from spikezip_hf.hub import save_card
        except ModuleNotFoundError as error:
            if error.name != "spikezip_hf":
                raise
            return  # the class was loaded as remote code: whoever saves it has the card of where it came from
        save_card(self, folder, destination, results, state_dict, **fields)  # type: ignore[arg-type]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processing_class: Any = None,
        results: Mapping | Sequence[Mapping] | None = None,
        card: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        """Push all that `save_pretrained` saves, in one commit: it is there whole, or what was there before is.

        Args:
            repo_id: where to, "organisation/name".
            processing_class, results, card: see `save_pretrained`.
            others: `commit_message`, `commit_description`, `private`, `token`, `revision` (a branch), `create_pr`,
                `max_shard_size`, `tags`, as for `PreTrainedModel.push_to_hub`.

        Returns:
            huggingface_hub's CommitInfo.
        """
        if processing_class is not None:
            self.processing_class = processing_class
        saving = {"card": card, **kwargs.pop("saving", {})}
        if adapted(self):
            return super().push_to_hub(repo_id, **kwargs)
        try:  # in this form, or transformers would ask for the package where the code was loaded from the Hub
            from spikezip_hf.hub import push_model
        except ModuleNotFoundError as error:
            if error.name != "spikezip_hf":
                raise
            return super().push_to_hub(repo_id, **kwargs)
        return push_model(self, repo_id, results=results, saving=saving, **kwargs)  # type: ignore[arg-type]


ALIGNMENT = 64  # bytes, of memory that torch allocates on a CPU


@torch.no_grad()
def align(model: torch.nn.Module) -> None:
    """Move weights that lie at odd addresses, as they do in a file that is mapped into memory.

    A product may take another path through its kernels for such a weight, and end in other last bits: a loaded network
    would not equal its twin.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def weight_files(
    source: str | None, variant: str | None, location: Mapping[str, Any]
) -> Iterator[tuple[str, str | None]]:
    """Files of weights that a model was loaded from, each with the digest that an index tells of, or None.

    Raises:
        DamagedFile: the index cannot be read, or names a file that is not beside it.
    """
    if source is None:
        return
    middle = f".{variant}" if variant else ""
    location = {**location, "local_files_only": True}
    path = find_file(source, f"model{middle}.safetensors", **location)
    index = None if path else find_file(source, f"model.safetensors.index{middle}.json", **location)
    if path is not None:
        yield path, None
    elif index is not None:
        names, digests = read_index(index)
        for name in names:
            path = find_file(source, name, **location)
            if path is not None:
                yield path, digests.get(name)
