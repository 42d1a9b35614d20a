"""Word lists in English and Chinese, cut into the two sides of the train / held-out border.

Owns words only; how they become tools, values and sentences is decided in `values`, `toolset` and the tasks. Verbs are shared by
both sides (there are few of them); nouns, labels, people, cities and plain words are disjoint.
"""

# ruff: noqa: E501  (word tables read better unbroken)
from __future__ import annotations

from typing import NamedTuple

from openglm.synth.split import Split, side


class Noun(NamedTuple):
    """A thing that tools act on."""

    en: str
    zh: str


class Verb(NamedTuple):
    """An action. Verbs of one `group` mean nearly the same, so that one never serves as the wrong choice for another."""

    en: str
    zh: str
    group: str


class Label(NamedTuple):
    """The name of a parameter or result field (words joined by spaces) and the kind of value it takes."""

    en: str
    zh: str
    kind: str


class Words(NamedTuple):
    """Every list of one side."""

    nouns: tuple[Noun, ...]
    labels: tuple[Label, ...]
    cities: tuple[Noun, ...]
    people: tuple[str, ...]
    people_zh: tuple[str, ...]
    plain: tuple[str, ...]
    plain_zh: tuple[str, ...]


def _pairs(text: str) -> tuple[Noun, ...]:
    return tuple(Noun(*item.replace("_", " ").split(":")) for item in text.split())


VERBS = tuple(
    Verb(*item.split(":"))
    for item in """
get:获取:read find:查找:read query:查询:read show:显示:read list:列出:read check:查看:read fetch:获取:read
create:创建:create add:添加:create delete:删除:delete remove:移除:delete cancel:取消:delete
update:更新:update change:修改:update edit:编辑:update set:设置:update send:发送:send share:分享:send publish:发布:send
start:启动:start open:打开:start run:运行:start stop:停止:stop close:关闭:stop pause:暂停:pause
book:预订:book order:订购:book reserve:预约:book count:统计:count convert:转换:convert print:打印:print
download:下载:download upload:上传:upload verify:验证:verify rename:改名:rename archive:归档:archive restore:恢复:restore
merge:合并:merge track:跟踪:track schedule:安排:schedule pay:支付:pay lock:锁定:lock unlock:解锁:unlock
export:导出:export scan:扫描:scan clean:清理:clean""".split()
)

_NOUNS = _pairs("""
invoice:发票 ticket:工单 hotel:酒店 room:房间 train:火车 meeting:会议 calendar:日历 task:任务 note:笔记
report:报告 folder:文件夹 photo:照片 video:视频 song:歌曲 playlist:歌单 album:专辑 movie:电影 recipe:食谱
menu:菜单 table:餐桌 coupon:优惠券 product:产品 price:价格 stock:股票 account:账户 balance:余额 payment:付款 refund:退款 loan:贷款
contract:合同 customer:客户 employee:员工 student:学生 teacher:老师 course:课程 lesson:课 exam:考试 grade:成绩 school:学校
doctor:医生 patient:病人 appointment:预约单 medicine:药品 clinic:诊所 address:地址 package:包裹 shipment:货运 warehouse:仓库
vehicle:车辆 bicycle:自行车 taxi:出租车 bus:公交车 route:路线 map:地图 parking:停车位 bridge:桥梁 garden:花园 plant:植物 animal:动物
lamp:台灯 heater:暖气 camera:相机 printer:打印机 server:服务器 database:数据库 backup:备份 network:网络 password:密码 domain:域名
website:网站 blog:博客 comment:评论 message:消息 letter:信件 contact:联系人 group:群组 channel:频道 poll:投票 survey:问卷 form:表单
event:活动 concert:音乐会 museum:博物馆 gallery:画廊 festival:节日 holiday:假期 visa:签证 passport:护照 license:许可证 permit:通行证
tax:税单 salary:工资 budget:预算 expense:支出 receipt:收据 gift:礼物 prize:奖品 game:游戏 score:分数 match:比赛 team:团队 player:球员
alarm:闹钟 timer:计时器 reminder:提醒 clock:时钟 window:窗户 door:门 curtain:窗帘 fan:风扇 oven:烤箱 fridge:冰箱 robot:机器人 drone:无人机
sensor:传感器 battery:电池 engine:发动机 pump:水泵 valve:阀门 factory:工厂 machine:机器 tool:工具箱 color:颜色 image:图片 logo:标志
font:字体 poster:海报 article:文章 chapter:章节 poem:诗 dictionary:词典 language:语言 quote:名言 joke:笑话 story:故事 river:河流
mountain:山 island:岛 beach:海滩 forest:森林 farm:农场 market:市场 shop:商店 bakery:面包店 coffee:咖啡 pizza:披萨 cake:蛋糕 fruit:水果
wallet:钱包 subscription:订阅 discount:折扣 auction:拍卖 insurance:保险 claim:理赔 policy:保单 project:项目 branch:分支 commit:提交记录
bug:缺陷 build:构建 test:测试 release:版本 cluster:集群 container:容器 queue:队列 cache:缓存 log:日志 metric:指标 dashboard:看板
planet:行星 star:恒星 rocket:火箭 satellite:卫星 tide:潮汐 earthquake:地震 pollen:花粉 recipe_card:菜谱卡 library_card:借书证 gym_class:健身课
bus_stop:公交站 train_seat:火车座位 sales_lead:销售线索 work_shift:班次 phone_plan:话费套餐 light_scene:灯光场景 water_meter:水表 swim_lane:泳道
""")

_LABELS = tuple(
    Label(*item.replace("_", " ").split(":"))
    for item in """
city:城市:city town:城镇:city destination:目的地:city origin:出发地:city location:地点:city region:地区:city birthplace:出生地:city station:车站:city
name:姓名:person customer:客户:person owner:所有者:person author:作者:person recipient:收件人:person sender:发件人:person manager:经理:person
guest:客人:person driver:司机:person patient:病人:person student:学生:person assignee:负责人:person teacher:老师:person host:主人:person
user_name:用户名:person first_name:名字:person contact_name:联系人姓名:person reviewer:审核人:person winner:获胜者:person partner:伙伴:person
amount:金额:int quantity:数量:int count:个数:int age:年龄:int limit:上限:int page:页码:int level:级别:int floor:楼层:int seats:座位数:int
nights:晚数:int year:年份:int duration:时长:int minutes:分钟:int hours:小时:int days:天数:int volume:音量:int speed:速度:int height:高度:int
order_id:订单号:int user_id:用户号:int room_number:房间号:int max_results:最多结果:int budget:预算:int port:端口:int size:大小:int index:序号:int
guests:人数:int stock:库存:int points:积分:int distance:距离:int capacity:容量:int retries:重试次数:int score:得分:int rank:名次:int
price:价格:float weight:重量:float rate:比率:float temperature:温度:float discount:折扣:float latitude:纬度:float longitude:经度:float
width:宽度:float ratio:比例:float tax:税:float rating:评分:float cost:费用:float threshold:阈值:float depth:深度:float area:面积:float
title:标题:text subject:主题:text note:备注:text comment:评论:text reason:原因:text message:消息:text summary:摘要:text body:正文:text
caption:说明:text topic:话题:word category:类别:word keyword:关键词:word tag:标签:word brand:品牌:word model:型号:code material:材料:word
product:产品:word genre:类型:word team:队伍:word project:项目:word query:查询词:word item:物品:word flavor:口味:word department:部门:word
folder:文件夹:word label:标记:word device:设备:word group:组:word company:公司:word species:品种:word course:课程:word channel:频道:word
date:日期:date start_date:开始日期:date end_date:结束日期:date deadline:截止日期:date birthday:生日:date due_date:到期日:date day:日子:date
time:时间:time start_time:开始时间:time arrival:到达时间:time departure:出发时间:time opening:开门时间:time alarm_time:闹钟时间:time
email:邮箱:email to:收信邮箱:email reply_to:回复邮箱:email work_email:工作邮箱:email code:代码:code serial:序列号:code reference:编号:code
ticket_id:票号:code sku:货号:code plate:车牌:code tracking_number:运单号:code coupon:优惠码:code badge:工牌:code version:版本号:code
urgent:加急:bool public:公开:bool verbose:详细:bool active:启用:bool express:快递:bool recursive:递归:bool silent:静音:bool paid:已付:bool
archived:已归档:bool confirmed:已确认:bool notify:通知:bool shared:共享:bool visible:可见:bool refundable:可退:bool
size_class:尺码:enum color:颜色:enum status:状态:enum priority:优先级:enum format:格式:enum mode:模式:enum unit:单位:enum sort_order:排序:enum
currency:货币:enum language:语言:enum season:季节:enum shape:形状:enum plan:套餐:enum quality:质量:enum theme:风格:enum direction:方向:enum
tags:标签列表:words items:物品列表:words members:成员:people attendees:参加者:people keywords:关键词列表:words cities:城市列表:words colors:颜色列表:words
numbers:数字列表:ints ids:编号列表:ints values:数值:ints scores:得分列表:ints pages:页码列表:ints position:位置:point corner:角点:point""".split()
)

ENUMS = (
    ("red", "green", "blue", "black", "white"), ("low", "medium", "high"), ("small", "large", "huge"), ("pdf", "csv", "html"),
    ("asc", "desc"), ("open", "done", "blocked"), ("metric", "imperial"), ("celsius", "fahrenheit"), ("usd", "eur", "cny", "jpy"),
    ("fast", "slow", "auto"), ("north", "south", "east", "west"), ("spring", "summer", "autumn", "winter"), ("basic", "plus", "pro"),
    ("round", "square", "oval"), ("light", "dark"), ("daily", "weekly", "monthly"), ("hot", "cold", "warm"), ("sweet", "sour", "salty"),
    ("draft", "final"), ("left", "right", "center"), ("gold", "silver", "bronze"), ("km", "mile", "meter"), ("first", "second", "third"),
)  # fmt: skip

_CITIES = _pairs("""
Paris:巴黎 London:伦敦 Berlin:柏林 Madrid:马德里 Rome:罗马 Vienna:维也纳 Prague:布拉格 Oslo:奥斯陆 Dublin:都柏林 Lisbon:里斯本 Athens:雅典 Warsaw:华沙
Moscow:莫斯科 Tokyo:东京 Osaka:大阪 Kyoto:京都 Seoul:首尔 Busan:釜山 Beijing:北京 Shanghai:上海 Shenzhen:深圳 Guangzhou:广州 Hangzhou:杭州
Nanjing:南京 Wuhan:武汉 Chengdu:成都 Xiamen:厦门 Tianjin:天津 Suzhou:苏州 Qingdao:青岛 Dalian:大连 Harbin:哈尔滨 Kunming:昆明 Lanzhou:兰州
Taipei:台北 Bangkok:曼谷 Hanoi:河内 Manila:马尼拉 Jakarta:雅加达 Delhi:德里 Mumbai:孟买 Dubai:迪拜 Cairo:开罗 Lagos:拉各斯 Nairobi:内罗毕 Sydney:悉尼
Perth:珀斯 Toronto:多伦多 Boston:波士顿 Chicago:芝加哥 Dallas:达拉斯 Denver:丹佛 Miami:迈阿密 Seattle:西雅图 Austin:奥斯汀 Houston:休斯敦
Lima:利马 Bogota:波哥大 Havana:哈瓦那 Quito:基多 Milan:米兰 Naples:那不勒斯 Venice:威尼斯 Munich:慕尼黑 Hamburg:汉堡 Cologne:科隆 Geneva:日内瓦
Zurich:苏黎世 Lyon:里昂 Nice:尼斯 Porto:波尔图 Seville:塞维利亚 Valencia:瓦伦西亚 Krakow:克拉科夫 Riga:里加 Helsinki:赫尔辛基 Stockholm:斯德哥尔摩
Bergen:卑尔根 Glasgow:格拉斯哥 Leeds:利兹 Bristol:布里斯托 Brussels:布鲁塞尔 Antwerp:安特卫普 Rotterdam:鹿特丹 Amsterdam:阿姆斯特丹
Budapest:布达佩斯 Sofia:索非亚 Istanbul:伊斯坦布尔 Ankara:安卡拉 Tehran:德黑兰 Karachi:卡拉奇 Dhaka:达卡 Yangon:仰光 Xian:西安 Changsha:长沙
Montreal:蒙特利尔 Vancouver:温哥华 Phoenix:凤凰城 Santiago:圣地亚哥 Tunis:突尼斯 Accra:阿克拉 Brisbane:布里斯班 Auckland:奥克兰 Nagoya:名古屋
""")

_PEOPLE = tuple(
    """
Alice Bob Carol David Emma Frank Grace Henry Iris Jack Karen Leo Mary Nina Oscar Paul Quinn Rose Sam Tina Uma Victor Wendy Xavier Yara Zoe Adam Bella
Chris Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Mark Nora Oliver Peter Rachel Steve Tom Ursula Vera Walter Anna Ben Clara Daniel Elena
Felix Gina Hugo Ida Jonas Kate Liam Maya Noah Olga Pablo Ruth Simon Tara Ulric Vince Will Amy Brian Cindy Dean Ella Fred Gwen Hans Isabel James Kyle
Lucy Max Nick Opal Pam Rita Sean Todd Vivian Wade Abel Beth Carl Dora Edwin Faye Gary Hazel Ian Jane Kurt Lena Miles Nadia Otto Priya Ravi Sara Theo
Violet Wes Arjun Bruno Chloe Dmitri Esther Farid Greta Hiro Ines Jamal Kenji Lars Mina Nils Omar Petra Raul Sonia Tariq Yusuf Zara
""".split()
)

_PLAIN = tuple(
    """
apple banana cherry grape lemon mango orange peach pear plum bread butter cheese honey milk rice salt sugar tea water bottle bowl box brush bucket
button candle chair coat cup desk fork glass hammer hat jacket key kettle knife ladder lens mirror nail needle paper pen pencil pillow plate ring rope
ruler shelf shirt shoe soap sofa spoon stamp towel tray umbrella vase watch wheel whistle ant bear bee bird cat cow deer dog duck eagle fish fox frog
goat horse lion monkey mouse owl panda rabbit seal shark sheep snake spider tiger turtle whale wolf zebra cloud dust fire fog ice lake leaf moon mud
ocean rain rock sand sea sky smoke snow soil stone storm sun thunder tree wave wind wood amber bronze copper cotton crystal diamond iron jade leather
marble metal pearl plastic rubber ruby silk steel velvet wool artist baker banker captain chef dancer farmer hunter judge king knight lawyer nurse
pilot poet prince queen sailor singer soldier tailor writer anchor arrow banner basket bell blade cabin castle chain compass crown drum feather flag
flute forge fountain gate guitar harbor helmet hill horn island jewel lantern maze medal mill needlework oak palace path piano pine pond puzzle quilt
saddle scroll shield tent torch tower trail trumpet tunnel valley village violin wagon wing yard physics chemistry history music sports travel health
science finance garden energy design fashion comedy drama jazz opera cinema theatre tennis soccer hockey chess yoga cycling hiking camping sailing
""".split()
)

_PLAIN_ZH = tuple(
    """
苹果 香蕉 葡萄 柠檬 桃子 面包 牛奶 米饭 茶叶 杯子 椅子 桌子 钥匙 镜子 铅笔 雨伞 手表 手机 电脑 书包 衣服 帽子 鞋子 毛巾 小猫 小狗 老虎 狮子 兔子 熊猫
大象 白云 月亮 太阳 星星 大海 高山 森林 石头 花朵 小草 红色 蓝色 绿色 黑色 白色 音乐 电影 足球 篮球 旅行 健康 科学 历史 数学 物理 化学 文学 新闻 美食
春天 夏天 秋天 冬天 早上 晚上 城市 乡村 学校 医院 公园 商场 机场 车站 咖啡 蛋糕 火车 飞机 汽车 轮船 钢琴 吉他 画笔 相册 灯笼 风筝
""".split()
)

_SURNAMES_ZH = tuple("王李张刘陈杨黄赵周吴林高马")
_GIVEN_ZH = tuple("伟 芳 娜 敏 静 丽 强 磊 军 洋 勇 杰 涛 明 超 平 刚 文 小明 小红 建国 天宇 子文 文静 海明 思远 雨晨 一文".split())


def _words(split: Split) -> Words:
    return Words(
        nouns=side(_NOUNS, split, key=0),
        labels=side(_LABELS, split, key=0),
        cities=side(_CITIES, split, key=0),
        people=side(_PEOPLE, split),
        people_zh=side(tuple(surname + given for surname in _SURNAMES_ZH for given in _GIVEN_ZH), split),
        plain=side(_PLAIN, split),
        plain_zh=side(_PLAIN_ZH, split),
    )


WORDS: dict[Split, Words] = {"train": _words("train"), "heldout": _words("heldout")}
