"""Three subjects in Chinese, one after another: arithmetic, history, idioms. 最简单的用法.

先后教一个模型三门学科（数学、历史、成语），再让它自己判断问题属于哪一门，由对应的适配器回答。
运行方法（第一次会取来自带的模型和数据；慢速虚拟核上约十分钟）::

    python examples/subjects_zh.py

每门学科存为一个普通的 PEFT LoRA：``学科/adapters/数学/`` 等。换学科时不会重新加载基础模型；
后学的学科在前面学科的记忆约束下训练。再运行一次，会接着已经学完的继续，不再重复训练。
之后可以直接聊天：``crma chat --run 学科``。
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from constrained_adapters import SimpleDomainAdapter
from constrained_adapters.assistant import Decoding
from constrained_adapters.config.run import TrainingConfig

选项 = argparse.ArgumentParser(description="三门学科，一个模型。")
选项.add_argument("--base", default="embedded", help="基础模型：embedded、文件夹或 hub 名称")
选项.add_argument("--folder", default="学科", help="适配器所在的文件夹")
选项.add_argument("--idioms", default="packaged:chinese", help="成语数据")
选项.add_argument("--steps", type=int, default=16, help="每门学科的训练步数")
选项.add_argument("--examples", type=int, default=200, help="每门学科最多用多少条数据")
设置 = 选项.parse_args()

面积 = "一个长方形长{}米，宽{}米，面积是多少平方米？"
数学题 = [(面积.format(长, 宽), str(长 * 宽)) for 长 in range(2, 12) for 宽 in range(2, 10)]

朝代 = {
    "秦朝": ["秦始皇", "李斯", "蒙恬", "赵高", "扶苏", "项燕"],
    "汉朝": ["刘邦", "汉武帝", "张骞", "司马迁", "卫青", "霍去病", "班固", "王昭君"],
    "唐朝": ["李世民", "武则天", "李白", "杜甫", "白居易", "玄奘", "魏征", "杨贵妃"],
    "宋朝": ["赵匡胤", "苏轼", "岳飞", "王安石", "司马光", "包拯", "李清照", "辛弃疾"],
    "明朝": ["朱元璋", "郑和", "王阳明", "海瑞", "戚继光", "张居正", "李时珍", "徐霞客"],
    "清朝": ["康熙", "乾隆", "林则徐", "曾国藩", "左宗棠", "纪晓岚", "曹雪芹", "慈禧"],
}
历史题 = [(f"历史人物{人}生活在哪个朝代？", 朝) for 朝, 人物 in 朝代.items() for 人 in 人物]

助手 = SimpleDomainAdapter(
    设置.base,
    设置.folder,
    training=TrainingConfig(steps=设置.steps, batch_size=8, learning_rate=6e-3, max_length_tokens=96),
    decoding=Decoding(max_new_tokens=24),
    tell=print,
)

助手.train_domain("数学", 数学题, keywords=["面积", "几何"], max_examples=设置.examples)
助手.train_domain("历史", 历史题, keywords=["朝代"], max_examples=设置.examples)
助手.train_domain("成语", 设置.idioms, max_examples=设置.examples)
print("已学完：", "、".join(助手.domains))

助手.switch_to("数学")  # 只换适配器，不重新加载模型
print("数学：", 助手.answer(面积.format(6, 7)))

for 问题 in (
    面积.format(5, 8),
    "历史人物柳宗元生活在哪个朝代？",
    "成语解释：比喻人多力量大。\n选项：众志成城、一清二楚、画蛇添足、井底之蛙\n是哪个成语？",
    "What is the capital of France?",
):
    print("问：", 问题.replace("\n", " "))
    回答 = 助手.answer_with_domain(问题)
    print(f"答（{助手.current or '基础模型'}）：", 回答)
