"""Chats as text: messages checked, rendered by each member's template, quoted text escaped.

Other rooms import `render_chat` from `packfuse.text.chats.chat_template`, and the checks of texts
and messages from `packfuse.text.chats.messages`. Templates run in the sandbox here, within a limit
on their work. This room uses the other modules of `packfuse.text` and the rooms below it.
"""
