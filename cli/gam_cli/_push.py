"""``gam-merge push OUT user/name``: a merge to the Hub."""

from gam_cli import _options as options


def push(
    merge: options.Merge,
    repository: options.Repository,
    private: options.Private = False,
    revision: options.Revision = None,
    create_pr: options.CreatePr = False,
    commit_message: options.CommitMessage = "Merged LoRA adapter",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Upload the files of a merge to the Hub, in one commit."""
    import gam_merge as gm
    from gam_cli import _present as present

    with present.running(quiet=quiet):
        url = gm.push(
            merge,
            repository,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )
    present.show({"url": url}, [f"pushed to {url}"], as_json=as_json, quiet=quiet)
